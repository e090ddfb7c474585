"""Real QEMU and swtpm for the probe's tests: start, talk, move, stop; nothing outlives its `with` block."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ConnectError, QMPClient, QMPError

from probe.lines import Line, read_lines

T = TypeVar("T")

# QEMU before 9.0 under TCG loses dirty pages in live migration when RAM is a multiple of 256 KiB.
RAM_KIB = 64 * 1024 + 8
DEADLINE_S = 60.0
TOOLS = ("qemu-system-x86_64", "qemu-img", "swtpm", "gcc")


class Qmp:
    """A conversation with a QEMU for code without an event loop; it has one of its own and closes it."""

    def __init__(self, socket: Path) -> None:
        self._runner = asyncio.Runner()
        self._client = QMPClient(socket.name)
        try:
            self._runner.run(self._client.connect(str(socket)))
        except BaseException:
            self.close()
            raise

    def cmd(self, command: str, **arguments: object) -> Any:
        """Run one command and return its answer."""
        return self._runner.run(self._client.execute(command, arguments or None))

    def close(self) -> None:
        """End it; a QEMU that went first is no error."""
        with suppress(QMPError, EOFError, OSError):
            self._runner.run(self._client.disconnect())
        self._runner.close()


def missing_tools() -> list[str]:
    """Names of the programs the tests need and this machine lacks."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def wait_for(what: str, look: Callable[[], T | None], *, deadline_s: float = DEADLINE_S) -> T:
    """Look until there is something to see; the one place of these tests that lets time pass."""
    end = time.monotonic() + deadline_s
    while (seen := look()) is None:
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: nothing within {deadline_s:g} s")
        time.sleep(0.01)
    return seen


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a guest is made of; source and target of a move share one, apart from `name`."""

    image: Path
    folder: Path
    machine: str = "q35"
    disks: tuple[Path, ...] = ()
    tpm: bool = True
    append: str = ""
    extra: tuple[str, ...] = ()
    initrd: Path | None = None
    ram_kib: int = RAM_KIB


@dataclass
class Machine:
    """One running QEMU. `log_start` is where its own part of the log begins: a VM may have been here before."""

    name: str
    log: Path
    log_start: int
    process: subprocess.Popen[bytes]
    qmp: Qmp
    swtpm: subprocess.Popen[bytes] | None = None

    def ask(self, command: str, **arguments: object) -> Any:
        """Run a QMP command and return what it returns."""
        return self.qmp.cmd(command, **arguments)

    def lines(self) -> list[Line]:
        """The guest's lines since this QEMU started."""
        return read_lines([self.log.read_bytes()[self.log_start :].decode("ascii", errors="replace")])[0]

    def wait_line(self, accept: Callable[[Line], bool], *, what: str = "line") -> Line:
        """Wait for a line that `accept` says yes to."""

        def look() -> Line | None:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name}: QEMU ended with status {self.process.returncode}")
            return next((line for line in self.lines() if accept(line)), None)

        return wait_for(f"{self.name}: {what}", look)

    def wait_ticks(self, count: int) -> Line:
        """Wait until the guest is `count` ticks further than its newest line here, or its first if it has none yet."""
        self.wait_line(lambda line: line.kind in {"boot", "tick"})
        goal = self.lines()[-1].tick + count
        return self.wait_line(lambda line: line.tick >= goal, what=f"tick {goal}")

    def move_to(self, target: Machine) -> None:
        """Migrate live over the target's socket and wait until the guest runs there."""
        flags = [{"capability": "return-path", "state": True}]
        self.ask("migrate-set-capabilities", capabilities=flags)
        target.ask("migrate-set-capabilities", capabilities=flags)
        address = f"unix:{target.log.parent / (target.name + '.migrate')}"
        target.ask("migrate-incoming", uri=address)
        self.ask("migrate", uri=address)

        def ended() -> str | None:
            status = str(self.ask("query-migrate").get("status"))
            return status if status in {"completed", "failed", "cancelled"} else None

        assert wait_for("migration", ended) == "completed"
        wait_for("target", lambda: True if is_running(target) else None)

    def quit(self) -> None:
        """End QEMU in order, so that its volumes can be read."""
        self.ask("quit")
        self.process.wait(timeout=30)

    def kill(self) -> None:
        """Kill QEMU and then swtpm, as a power cut would."""
        self.process.kill()
        self.process.wait(timeout=30)
        if self.swtpm is not None:
            self.swtpm.kill()
            self.swtpm.wait(timeout=30)


def is_running(machine: Machine) -> bool:
    """Whether QEMU says that its guest runs."""
    return bool(machine.ask("query-status")["running"])


@contextmanager
def running(setup: Setup, name: str, *, incoming: bool = False) -> Iterator[Machine]:
    """Start QEMU (and swtpm on the state folder `<name>.tpm`); both are dead afterwards, whatever happened."""
    log, socket = setup.folder / f"{name}.log", setup.folder / f"{name}.qmp"
    socket.unlink(missing_ok=True)
    log_start = log.stat().st_size if log.exists() else 0
    with ExitStack() as stack:
        swtpm = stack.enter_context(_swtpm(setup.folder, name)) if setup.tpm else None
        command = [*_command(setup, name), *(["-incoming", "defer"] if incoming else [])]
        process = stack.enter_context(_process(command, setup.folder / f"{name}.stderr"))

        def connect() -> Qmp | None:
            if process.poll() is not None:
                raise AssertionError(f"{name}: {(setup.folder / f'{name}.stderr').read_text()}")
            return _connect(socket)

        qmp = wait_for(f"{name}: QMP", connect)
        stack.callback(qmp.close)
        yield Machine(name, log, log_start, process, qmp, swtpm)


def _connect(socket: Path) -> Qmp | None:
    if not socket.exists():
        return None
    try:
        return Qmp(socket)
    except ConnectError:  # QEMU is going away; the caller looks for its reason
        return None


@contextmanager
def _process(command: Sequence[str], stderr: Path) -> Iterator[subprocess.Popen[bytes]]:
    with stderr.open("ab") as file, subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=file) as process:
        try:
            yield process
        finally:
            process.kill()  # no effect on one that has ended


@contextmanager
def _swtpm(folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    state, socket = folder / f"{name}.tpm", folder / f"{name}.tpm.sock"
    state.mkdir(exist_ok=True)
    socket.unlink(missing_ok=True)
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={socket}"]
    with _process(command, folder / f"{name}.swtpm.stderr") as process:
        wait_for("swtpm", lambda: True if socket.exists() else None)
        yield process


def _command(setup: Setup, name: str) -> list[str]:
    folder = setup.folder
    command = ["qemu-system-x86_64", "-machine", setup.machine, "-accel", "tcg", "-m", f"{setup.ram_kib}K"]
    command += ["-nodefaults", "-display", "none", "-rtc", "base=utc,clock=host"]
    command += ["-kernel", str(setup.image), "-append", setup.append]
    command += ["-initrd", str(setup.initrd)] if setup.initrd else []
    command += ["-chardev", f"file,id=log,path={folder / name}.log,append=on", "-serial", "chardev:log"]
    command += ["-qmp", f"unix:{folder / name}.qmp,server=on,wait=off", *setup.extra]
    for index, disk in enumerate(setup.disks):
        kind = "qcow2" if disk.suffix == ".qcow2" else "raw"
        command += ["-drive", f"if=none,id=disk{index},format={kind},file={disk}"]
        if not any(f"drive=disk{index}" in word for word in setup.extra):
            command += ["-device", f"virtio-blk-pci,drive=disk{index}"]
    if setup.tpm:
        command += ["-chardev", f"socket,id=tpm,path={folder / name}.tpm.sock"]
        command += ["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]
    return command
