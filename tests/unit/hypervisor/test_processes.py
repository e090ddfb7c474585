"""Processes that outlive their starter: found again by pid file and token, ended for certain, strangers left alone."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from haulier.errors import StepFailed
from haulier.hypervisor.processes import Daemon, end, hold, last_words, log_size, spawn, wait_for_end

STUBBORN = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(int(sys.argv[1]), b"ready")
signal.pause()
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A place for one process; whatever a failed test leaves there is ended."""
    daemon = Daemon(tmp_path / "it.pid", f"{tmp_path}/it.pid", tmp_path / "it.log")
    yield daemon
    end(daemon, patience_s=0.0)


def start(daemon: Daemon) -> int:
    """A process that sleeps until it is ended: it follows its own pid file."""
    daemon.pid_file.touch()
    return spawn(daemon, ["tail", "-f", daemon.token])


def start_stubborn(daemon: Daemon) -> int:
    """A process that does not hear SIGTERM; it has said that it is ready for that."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as heard:
        pid = spawn(daemon, [sys.executable, "-S", "-c", STUBBORN, str(writing), daemon.token], pass_fds=[writing])
        os.close(writing)
        assert heard.read(5) == b"ready"
    return pid


def is_gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def test_started_process_is_found_again(daemon: Daemon) -> None:
    pid = start(daemon)
    again = Daemon(daemon.pid_file, daemon.token, daemon.log)
    assert again.pid() == pid
    assert os.getsid(pid) == pid, "it must not die with its starter's session"


def test_process_is_found_from_its_first_moment(daemon: Daemon) -> None:
    """For a moment after its start the kernel shows no command line: an undo that came then would leave it running."""
    for _ in range(20):
        pid = start(daemon)
        assert daemon.pid() == pid
        end(daemon)


def test_ended(daemon: Daemon) -> None:
    pid = start(daemon)
    assert end(daemon)
    assert is_gone(pid)
    assert daemon.pid() is None
    assert not daemon.pid_file.exists()


def test_ending_twice(daemon: Daemon) -> None:
    start(daemon)
    assert [end(daemon), end(daemon)] == [True, False]


def test_process_that_does_not_hear(daemon: Daemon) -> None:
    pid = start_stubborn(daemon)
    assert end(daemon, patience_s=0.05)
    assert is_gone(pid)


def test_pid_that_came_back_belongs_to_a_stranger(daemon: Daemon) -> None:
    """The stranger has the number that the file holds, and not the token."""
    with subprocess.Popen(["tail", "-f", "/dev/null"], stdout=subprocess.DEVNULL) as stranger:
        daemon.pid_file.write_text(f"{stranger.pid}\n")
        assert daemon.pid() is None
        assert not end(daemon)
        assert stranger.poll() is None
        assert not daemon.pid_file.exists()
        stranger.kill()


def test_process_of_another_vm_is_a_stranger(daemon: Daemon, tmp_path: Path) -> None:
    pid = start(daemon)
    other = Daemon(tmp_path / "other.pid", f"{tmp_path}/other.pid", tmp_path / "other.log")
    other.pid_file.write_text(str(pid))
    assert not end(other)
    assert daemon.pid() == pid


@pytest.mark.parametrize("content", ["", "x", "-1", "0", "99999999", "1 2"])
def test_pid_file_with_nonsense(daemon: Daemon, content: str) -> None:
    daemon.pid_file.write_text(content)
    assert daemon.pid() is None
    assert not end(daemon)


def test_zombie_does_not_count(daemon: Daemon) -> None:
    """Its number and its entry are still there, but nothing runs."""
    daemon.pid_file.touch()
    with subprocess.Popen(["tail", "-f", daemon.token], stdout=subprocess.DEVNULL) as process:
        daemon.pid_file.write_text(str(process.pid))
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert daemon.pid() is None


def test_how_it_ended(daemon: Daemon) -> None:
    """QEMU and swtpm remove their pid file on the way out; one that was killed cannot."""
    pid = start(daemon)
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(daemon, seconds=10)
    assert not daemon.ended_by_itself()
    daemon.pid_file.unlink()
    assert daemon.ended_by_itself()


def test_waiting_for_the_end(daemon: Daemon) -> None:
    assert wait_for_end(daemon, seconds=0)
    pid = start(daemon)
    assert not wait_for_end(daemon, seconds=0)
    threading.Timer(0.05, os.kill, (pid, signal.SIGKILL)).start()
    assert wait_for_end(daemon, seconds=10)


def test_waiting_by_a_descriptor_beyond_the_1024th(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has many open; select() knows none of those."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 2048), limits[1]))
    real = os.pidfd_open

    def open_high(pid: int) -> int:
        low = real(pid)
        try:
            return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1500)
        finally:
            os.close(low)

    monkeypatch.setattr(os, "pidfd_open", open_high)
    try:
        pid = start(daemon)
        assert not wait_for_end(daemon, seconds=0)
        end(daemon)
        assert is_gone(pid)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_one_that_has_removed_its_pid_file_is_waited_for_all_the_same(daemon: Daemon) -> None:
    """As supervisord does a moment before its end; whoever took that for the end left it running."""
    pid = start(daemon)
    done = []

    def look() -> bool:
        daemon.pid_file.unlink(missing_ok=True)
        done.append(daemon.pid())
        if len(done) == 3:
            os.kill(pid, signal.SIGKILL)
        return False

    assert wait_for_end(daemon, seconds=20, enough=look)
    # It may be looked at once more before it has ended.
    assert set(done) == {None}


def test_waiting_until_it_is_enough(daemon: Daemon) -> None:
    start(daemon)
    looks = iter((False, False, True))
    assert not wait_for_end(daemon, seconds=3600, enough=lambda: next(looks))
    assert daemon.pid() is not None


def test_program_that_is_not_there(daemon: Daemon) -> None:
    with pytest.raises(StepFailed, match="program_not_started: /nonexistent could not be started"):
        spawn(daemon, ["/nonexistent", daemon.token])
    assert not daemon.pid_file.exists()


def test_process_without_token_is_never_started(daemon: Daemon) -> None:
    with pytest.raises(AssertionError, match="never be found again"):
        spawn(daemon, ["true"])
    assert not daemon.pid_file.exists()


def test_log_is_appended_to_and_ours_alone(daemon: Daemon) -> None:
    for word in ("one", "two"):
        spawn(daemon, ["sh", "-c", f"echo {word}; echo {word} >&2", daemon.token])
        wait_for_end(daemon, seconds=10)
    assert daemon.log.read_text() == "one\none\ntwo\ntwo\n"
    assert daemon.log.stat().st_mode & 0o777 == 0o600


def test_what_it_makes_is_ours_alone(daemon: Daemon) -> None:
    """QEMU makes the sockets and logs of serial ports itself; a worker's own umask may be anything."""
    spawn(daemon, ["sh", "-c", 'umask > "$0"', f"{daemon.token}.umask"])
    wait_for_end(daemon, seconds=5.0)
    assert Path(f"{daemon.token}.umask").read_text().strip() == "0077"


def test_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert (last_words(log), log_size(log)) == ("", 0)
    log.write_text("old\n")
    since = log_size(log)
    with log.open("a") as file:
        file.write("qemu: warning: slow\n  qemu: it broke \n\nqemu: for good\n")
    assert last_words(log, since=since) == "qemu: it broke | qemu: for good"
    assert last_words(log, since=since, limit=8) == "for good"
    assert last_words(log).startswith("old | ")


def test_last_words_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\xff\xfe it broke\n")
    assert last_words(tmp_path / "log").endswith("it broke")


def test_lock_is_held_by_one_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "worker.lock"
    first = hold(path)
    assert not os.get_inheritable(first), "a QEMU would hold it for its worker's successor"
    with pytest.raises(StepFailed, match="held"):
        hold(path)
    os.close(first)
    os.close(hold(path))
