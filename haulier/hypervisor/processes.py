"""Long-lived child processes: started apart from the worker, found again by their pid file, ended for certain.

QEMU and swtpm must outlive the worker that started them, so they get a session of their own and a file for what they
say. A pid alone proves nothing (numbers come back), so a process counts as ours only if its command line holds a token
of ours.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from haulier.errors import StepFailed

# How often somebody who may stop waiting is asked.
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Daemon:
    """Where a process leaves its pid, and the token that its command line must hold."""

    pid_file: Path
    token: str
    log: Path

    def pid(self) -> int | None:
        """The pid if the process runs now, else None. Costs two reads."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if _is_ours(pid, self.token) else None

    def resident_bytes(self) -> int:
        """The RAM that it has now, 0 if it does not run."""
        pid = self.pid()
        try:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pid else 0
        except (OSError, IndexError):
            # It ended in this moment.
            return 0

    def ended_by_itself(self) -> bool:
        """True if it ended cleanly: QEMU and swtpm remove their pid file on the way out, a killed one cannot."""
        return not self.pid_file.exists()


def _is_ours(pid: int, token: str) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return token.encode() in command and state not in "ZX"


def spawn(daemon: Daemon, argv: Sequence[str], *, pass_fds: Sequence[int] = ()) -> int:
    """Start a process in a session of its own and note its pid; what it prints is appended to the daemon's log. Returns
    its pid.

    Raises StepFailed when the program cannot be started; nothing runs then.
    """
    if not any(daemon.token in word for word in argv):
        raise AssertionError(f"a process without {daemon.token} in its command line could never be found again")
    try:
        with daemon.log.open("ab") as output:
            daemon.log.chmod(0o600)
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=pass_fds,
                start_new_session=True,
                # Sockets and logs of serial ports are made by QEMU itself.
                umask=0o077,
            )
    except OSError as error:
        raise StepFailed(
            "program_not_started", f"{argv[0]} could not be started: {error.strerror}", "haulier doctor"
        ) from error
    # The program writes the same number a moment later; until then an undo would not find it.
    daemon.pid_file.write_text(f"{process.pid}\n")
    # For a moment after Popen has returned the kernel still shows no command line: who looked then would find nobody.
    while process.poll() is None and not _is_ours(process.pid, daemon.token):
        time.sleep(0.001)
    # Whoever starts a process must wait for it some day, or its end leaves a zombie that looks alive.
    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
    return process.pid


def end(daemon: Daemon, *, patience_s: float = 5.0) -> bool:
    """End a process: SIGTERM, then SIGKILL after `patience_s`. Returns whether one was there. Safe to call twice.

    When it returns, the process is dead and its pid file gone. Raises StepFailed if even SIGKILL did not help.
    """
    pid = daemon.pid()
    if pid is not None:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            handle = -1
        if handle >= 0:
            try:
                _end_by_handle(handle, daemon, patience_s)
            finally:
                os.close(handle)
    daemon.pid_file.unlink(missing_ok=True)
    return pid is not None


def end_in_order(daemon: Daemon, *, patience_s: float) -> None:
    """End a process by SIGTERM alone, so that it writes what it has in memory. Safe to call twice.

    Raises StepFailed `process_stays` when it has not ended after `patience_s` (it runs on then), `process_killed` when
    it was killed: one that ends by itself takes its pid file with it.
    """
    if (pid := daemon.pid()) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not wait_for_end(daemon, seconds=patience_s):
            words = f"the process of {daemon.pid_file} has not ended after {patience_s:g} s"
            raise StepFailed("process_stays", words, "Is its disk very slow?")
        if not daemon.ended_by_itself():
            raise StepFailed("process_killed", f"the process of {daemon.pid_file} was killed", "See its host's log.")


def _end_by_handle(handle: int, daemon: Daemon, patience_s: float) -> None:
    # Between reading the pid and opening the handle the number may have changed hands.
    if daemon.pid() is None:
        return
    for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 10.0)):
        try:
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return
        if _has_ended(handle, wait_s):
            return
    raise StepFailed("process_stays", f"the process of {daemon.pid_file} does not end", "Look at it by hand.")


def _has_ended(handle: int, wait_s: float) -> bool:
    """Whether a process ends in this time."""
    # Not select(): it knows no descriptor beyond the 1024th.
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(math.ceil(wait_s * 1000)))


def wait_for_end(daemon: Daemon, *, seconds: float, enough: Callable[[], bool] | None = None) -> bool:
    """Wait until the process has ended by itself. Returns False when it still runs after `seconds`, or as soon as it is
    `enough`, which is asked now and then.

    It is the process that is waited for: supervisord and QEMU remove their pid files before they end.
    """
    pid = daemon.pid()
    if pid is None:
        return True
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    gives_up_at = time.monotonic() + seconds
    try:
        while (left_s := gives_up_at - time.monotonic()) > 0 and not (enough and enough()):
            if _has_ended(handle, min(left_s, _LOOK_S) if enough else left_s):
                return True
        return _has_ended(handle, 0.0)
    finally:
        os.close(handle)


def holders(path: Path) -> list[int]:
    """The pids of all processes of this host that have a file or a device open, as far as we may look."""
    found, device = [], path.stat().st_rdev if path.is_block_device() else None
    for process in Path("/proc").glob("[0-9]*"):
        # It may end, or be somebody else's, while it is looked at.
        with suppress(OSError):
            if any(_leads_to(link, path, device) for link in (process / "fd").iterdir()):
                found.append(int(process.name))
    return sorted(found)


async def wait_until_released(path: Path) -> None:
    """Wait until the processes that have a file open have ended, whoever began them."""
    while pids := holders(path):
        for pid in pids:
            await _ended(pid)


async def _ended(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def _leads_to(link: Path, path: Path, device: int | None) -> bool:
    try:
        # A device has many names.
        return link.readlink() == path if device is None else link.is_block_device() and link.stat().st_rdev == device
    except OSError:
        return False


def last_words(log: Path, *, since: int = 0, limit: int = 600) -> str:
    """What a process said in its log after position `since` (bytes), on one line, at most `limit` characters of its
    end.
    """
    try:
        with log.open("rb") as file:
            file.seek(since)
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "warning:" not in line]
    return " | ".join(lines)[-limit:]


def log_size(log: Path) -> int:
    """How long a log is now, in bytes: the position from which `last_words` is to read."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def hold(path: Path) -> int:
    """Hold a file's lock until this process ends, however it ends. Returns the descriptor, which children do not get.

    Raises StepFailed `held` when another process has it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise StepFailed("held", f"{path} is held by another process", "There is one worker a node.") from error
    return handle
