"""Can a change to the TPM's state be lost between the copy and the switch-over? An experiment (docs/tpm.md).

`python -m scripts.tpm_window` moves a guest by hand from one QEMU and swtpm to another, with nothing of Haulier's chain
in between. The state is copied first; the guest goes on changing its TPM; then it is moved. At each point the state's
digest is printed, and at the end the guest is started cold on the stale copy and on the state that arrived. Exit status
0 if everything was as docs/tpm.md says.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from haulier.hypervisor.facts import qemu_version
from haulier.hypervisor.layout import listening_socket
from haulier.hypervisor.monitor import Monitor, open_monitor
from haulier.hypervisor.swtpm import swtpm_facts
from haulier.hypervisor.tpm_state import TpmState, read_state
from probe.build import build
from probe.lines import Line, read_lines

_QEMU = "qemu-system-x86_64"
_VOLUME_BYTES = 4 << 20
# No multiple of 256 KiB: without KVM, QEMU before 9.0 would lose dirty pages (haulier/planner/guest_ram.py).
_RAM = "65544K"
# Each fifth tick of a millisecond writes the counter, each tenth says what it is.
_GUEST = "tick_us=1000 tpm_every=5 line_every=10 dirty_mib=4 dirty_mib_s=1"
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Pair:
    """One swtpm with its state volume, and the QEMU that talks to it."""

    name: str
    folder: Path

    @property
    def volume(self) -> Path:
        return self.folder / f"{self.name}.tpm"

    @property
    def qmp(self) -> Path:
        return self.folder / f"{self.name}.qmp"

    @property
    def serial(self) -> Path:
        return self.folder / f"{self.name}.log"

    def lines(self) -> list[Line]:
        """What the guest has said here, in its order."""
        if not self.serial.exists():
            return []
        found, _torn = read_lines([self.serial.read_text(errors="replace")])
        return sorted(found, key=lambda line: line.order)

    @contextmanager
    def running(self, kernel: Path, *, incoming: bool = False) -> Iterator[None]:
        """Both processes; the guest does not run yet. They are dead when the block is over."""
        tpm_socket = self.folder / f"{self.name}.swtpm"
        processes: list[subprocess.Popen[bytes]] = []
        with (self.folder / f"{self.name}.err").open("ab") as said:
            try:
                with listening_socket(tpm_socket) as control:
                    words = ["swtpm", "socket", "--tpm2", "--tpmstate", f"backend-uri=file://{self.volume},mode=0600"]
                    words += ["--ctrl", f"type=unixio,fd={control.fileno()}"]
                    processes.append(_start(words, said=said.fileno(), fd=control.fileno()))
                with listening_socket(self.qmp) as monitor:
                    words = self._qemu(kernel, tpm_socket, monitor.fileno()) + ["-incoming", "defer"] * incoming
                    processes.append(_start(words, said=said.fileno(), fd=monitor.fileno()))
                yield
            finally:
                for process in reversed(processes):  # QEMU first: swtpm must not outlive what was asked of it
                    process.kill()
                    process.wait()

    def _qemu(self, kernel: Path, tpm_socket: Path, monitor_fd: int) -> list[str]:
        return [
            *(_QEMU, "-machine", "q35", "-accel", "tcg", "-m", _RAM, "-rtc", "base=utc,clock=host"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
            *("-kernel", str(kernel), "-append", _GUEST),
            *("-chardev", f"file,id=log,path={self.serial},append=on", "-serial", "chardev:log"),
            *("-chardev", f"socket,id=tpm,path={tpm_socket}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"),
            *("-device", "tpm-crb,tpmdev=tpm0"),
            *("-chardev", f"socket,id=mon,fd={monitor_fd},server=on,wait=off", "-mon", "chardev=mon,mode=control"),
        ]


def _start(words: list[str], *, said: int, fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=[fd])


@dataclass(slots=True)
class Report:
    """What is printed, and whether all of it was as it should be."""

    held: bool = True

    def say(self, what: str, found: str) -> None:
        print(f"{what:54}{found}", flush=True)

    def state(self, what: str, pair: Pair) -> TpmState:
        """Read a state volume and print it: digest of the permanent state, size of the file."""
        state = read_state(pair.volume)
        self.say(what, f"{state.digest[:16]}  file of {pair.volume.stat().st_size:7} bytes")
        return state

    def claim(self, what: str, holds: bool) -> None:
        self.held = self.held and holds
        print(f"{'holds' if holds else 'DOES NOT HOLD':>14}: {what}", flush=True)


async def _until(ready: Callable[[], bool], what: str) -> None:
    """Look again and again: a guest's log has no event to wait for."""
    deadline = time.monotonic() + _PATIENCE_S
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {_PATIENCE_S:.0f} s in vain for {what}")
        await asyncio.sleep(0.01)


def _counter(pair: Pair) -> int:
    """The newest TPM counter that the guest has told here; 0 before it has."""
    lines = pair.lines()
    return (lines[-1].tpm or 0) if lines else 0


async def _prepare(monitor: Monitor, *names: str) -> None:
    capabilities = [{"capability": name, "state": True} for name in ("events", "return-path", *names)]
    await monitor.execute("migrate-set-capabilities", capabilities=capabilities)


async def _wait_for(monitor: Monitor, status: str) -> None:
    event = await monitor.wait_for(
        lambda event: event.name == "MIGRATION" and event.data["status"] in (status, "failed", "cancelled")
    )
    if event.data["status"] != status:
        raise SystemExit(f"the migration is {event.data['status']}; see the .err files (--keep)")


async def _move(report: Report, source: Pair, target: Pair, *, kernel: Path, changes: int) -> tuple[int, int]:
    """The experiment itself. Returns the TPM counter at the copy, and the last one the guest told on the target."""
    async with open_monitor(source.qmp) as old:
        await old.execute("cont")
        await _until(lambda: _counter(source) >= 20, "the guest's first lines")
        copied = read_state(source.volume)
        at_copy = _counter(source)
        # The fallback, as the phase sync_tpm makes it: a stable copy, in a volume of full size.
        target.volume.write_bytes(copied.container.ljust(_VOLUME_BYTES, b"\0"))
        shutil.copyfile(target.volume, target.volume.with_name("stale.tpm"))
        report.say("TPM counter the guest has told, at the copy", f"{at_copy}")
        report.state("copy on the target", target)
        with target.running(kernel, incoming=True):
            async with open_monitor(target.qmp) as new:
                await _until(lambda: _counter(source) >= at_copy + changes, f"{changes} changes of the TPM")
                report.say("changes of the TPM after the copy, at least", f"{_counter(source) - at_copy}")
                arrived = await _switch_over(report, source, target, (old, new))
                last_there = _counter(source)
                report.claim("the source's state is not the copy any more", arrived.digest != copied.digest)
                await new.execute("cont")
                await _until(lambda: _counter(target) > last_there + 20, "the guest's lines on the target")
                await new.execute("stop")
                report.say("last TPM counter told on the source, on the target", f"{last_there}, {_counter(target)}")
                line = target.lines()[-1]
                lost = (line.values["tpm_lost"], line.values["tpm_err"])
                report.claim("the guest read what it had last written, each time", lost == ("0", "0"))
                return at_copy, _counter(target)


async def _switch_over(report: Report, source: Pair, target: Pair, monitors: tuple[Monitor, Monitor]) -> TpmState:
    """From the begin of the stream to the load on the target, where the guest does not run yet."""
    old, new = monitors
    await _prepare(new)
    await new.execute("migrate-incoming", uri=f"unix:{target.folder}/stream")
    await _prepare(old, "pause-before-switchover")
    await old.execute("migrate", uri=f"unix:{target.folder}/stream")
    await _wait_for(old, "pre-switchover")
    report.state("source, guest paused, devices not saved yet", source)
    report.state("target, before the load", target)
    await old.execute("migrate-continue", state="pre-switchover")
    await _wait_for(old, "completed")
    sent = report.state("source, guest paused, devices saved", source)
    await _wait_for(new, "completed")
    arrived = report.state("target, after the load", target)
    report.claim("the state that arrived is the source's last one", arrived.digest == sent.digest)
    return arrived


async def _cold_start(folder: Path, volume: Path, kernel: Path, name: str) -> int:
    """Start the guest anew on a copy of a state volume. Returns the counter that it finds in the TPM."""
    pair = Pair(name, folder)
    shutil.copyfile(volume, pair.volume)
    with pair.running(kernel):
        async with open_monitor(pair.qmp) as monitor:
            await monitor.execute("cont")
            await _until(lambda: any(line.kind == "boot" for line in pair.lines()), "the guest's boot line")
    return next(line.tpm or 0 for line in pair.lines() if line.kind == "boot")


async def experiment(folder: Path, *, changes: int) -> bool:
    """Run it in a folder of its own. Returns whether everything was as it should be."""
    report, kernel = Report(), build(Path(".build/probe")).absolute()
    tpm = swtpm_facts("swtpm")
    report.say("QEMU, swtpm, libtpms", f"{qemu_version(_QEMU)}, {tpm.version}, {tpm.libtpms}")
    source, target = Pair("source", folder), Pair("target", folder)
    # Blank: swtpm makes a new TPM there. (Haulier refuses such a start where a TPM has been.)
    with source.volume.open("wb") as volume:
        volume.truncate(_VOLUME_BYTES)
    with source.running(kernel):
        at_copy, last = await _move(report, source, target, kernel=kernel, changes=changes)
    stale = await _cold_start(folder, folder / "stale.tpm", kernel, "cold-stale")
    report.say("cold start on the stale copy: counter in the TPM", f"{stale}")
    report.claim("without the stream the changes are lost", at_copy <= stale < at_copy + changes)
    fresh = await _cold_start(folder, target.volume, kernel, "cold-fresh")
    report.say("cold start on the state that arrived: counter", f"{fresh}")
    report.claim("with it none is", fresh >= last)
    return report.held


def main() -> int:
    """Run the experiment. Returns the exit status."""
    parser = argparse.ArgumentParser(description="What becomes of the TPM between the copy and the switch-over?")
    parser.add_argument("--changes", type=int, default=100, help="TPM writes between the two, at least (100)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with volumes and logs, and say where")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="haulier-tpm-"))
    try:
        held = asyncio.run(experiment(folder, changes=options.changes))
    finally:
        if options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
