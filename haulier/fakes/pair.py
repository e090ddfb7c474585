"""Two hosts and the wire between them, and what their QEMUs do without being told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, TypeVar

from haulier.errors import StepFailed
from haulier.fakes.files import FakeFiles, FakePath, FakeVolume
from haulier.fakes.processes import FakeCarrier, FakeListener, FakeProcess
from haulier.fakes.qemu import UNDER_WAY, FakeExport, FakeQemu, RunState, StreamState

_Kind = TypeVar("_Kind", bound=FakeProcess)


@dataclass(frozen=True, slots=True)
class Move:
    """Something that a QEMU would do by itself now."""

    name: str
    make: Callable[[], object]


@dataclass(eq=False, slots=True)
class FakePair:
    """The hosts' files by host, and all processes by pid.

    `loses_tpm`: the stream arrives without the TPM's permanent state, which QEMU does not say. `time` is
    what events are stamped with.
    """

    disks: dict[str, FakeFiles]
    processes: dict[int, FakeProcess] = field(default_factory=dict)
    listeners: list[FakeListener] = field(default_factory=list)
    loses_tpm: bool = False
    time: float = 0.0

    current: ClassVar[FakePair]

    def use(self) -> None:
        """From now on, paths and calls (calls.py) mean this pair."""
        FakePair.current, FakePath.disks = self, self.disks

    # -- processes ----------------------------------------------------------------------------------------------------

    def running(self, kind: type[_Kind], host: str | None = None) -> list[_Kind]:
        """Every process of a kind that runs, found by its pid file or not."""
        return [
            each for each in self.processes.values()
            if isinstance(each, kind) and each.alive and host in (None, each.host)
        ]  # fmt: skip

    def next_pid(self) -> int:
        return 100 + len(self.processes)

    def add(self, process: _Kind) -> _Kind:
        """It runs, and its pid file is there."""
        self.processes[process.pid] = process
        FakePath(process.token).disk.contents[FakePath(process.token)] = f"{process.pid}\n"
        return process

    def find(self, token: str) -> FakeProcess | None:
        """The process that a pid file names, if it runs."""
        text = FakePath(token).disk.contents.get(FakePath(token))
        found = self.processes.get(int(text)) if isinstance(text, str) else None
        return found if found is not None and found.alive and found.token == token else None

    # -- connections --------------------------------------------------------------------------------------------------

    def listener(self, port: int) -> FakeListener | None:
        return next((each for each in self.listeners if each.port == port and each.is_open), None)

    def carrier(self, port: int) -> FakeCarrier | None:
        return next((each for each in self.running(FakeCarrier) if each.port == port), None)

    def receive(self, port: int, export: str, contents: FakeVolume) -> None:
        """A carrier takes a copy. Raises StepFailed when none is there."""
        found = self.carrier(port)
        if found is None:
            raise StepFailed("copy_failed", f"{export} could not be copied: connection refused", "Look at both nodes.")
        found.exports[export].take(contents)

    def export(self, port: int, device: str) -> FakeExport | None:
        """A disk that is served on a port."""
        for qemu in self.running(FakeQemu):
            if qemu.nbd is not None and qemu.nbd.port == port and device in qemu.exports:
                return FakeExport(qemu, device)
        return None

    def cut(self) -> None:
        """Every connection between the two hosts breaks."""
        for qemu in self.running(FakeQemu):
            if qemu.connection is not None:
                qemu.connection.cut()
            qemu.nodes = dict.fromkeys(qemu.nodes)

    # -- what they do by themselves -----------------------------------------------------------------------------------

    def moves(self) -> list[Move]:
        """All that may happen next without anybody's command, in any order."""
        qemus = self.running(FakeQemu)
        return [move for qemu in qemus for move in (*_mirror_moves(qemu), *self._stream_moves(qemu))]

    def _stream_moves(self, qemu: FakeQemu) -> Iterator[Move]:
        if qemu.holds_back_guest:
            yield Move("the guest is let go", qemu.let_go)
        if qemu.stream not in UNDER_WAY or qemu.connection is None:
            return
        other = self._peer(qemu)
        broken = not qemu.connection.whole
        if qemu.run_state is RunState.INMIGRATE:
            if broken:
                yield Move("the target sees the stream break", qemu.kill)
        elif broken and qemu.stream is StreamState.PRE_SWITCHOVER:
            return  # nothing is sent, so nobody notices
        elif broken:
            yield Move("the source sees the stream break", partial(qemu.lose_stream, StreamState.FAILED))
        elif other is None:
            return
        elif qemu.stream is StreamState.ACTIVE:
            yield Move("RAM has crossed", partial(_pause, qemu))
        elif qemu.stream is StreamState.DEVICE and other.stream is StreamState.COMPLETED:
            yield Move("the source hears of the load", partial(_complete, qemu))
        elif qemu.stream is StreamState.DEVICE:
            yield Move("the target loads", partial(self._load, qemu, other))

    def _peer(self, qemu: FakeQemu) -> FakeQemu | None:
        ends = self.running(FakeQemu)
        return next((each for each in ends if each is not qemu and each.connection is qemu.connection), None)

    def _load(self, source: FakeQemu, target: FakeQemu) -> None:
        if _tpm_is_gone(source):
            source.lose_stream(StreamState.FAILED)  # its devices cannot be saved
        elif _tpm_is_gone(target):
            target.kill()
        else:
            if target.swtpm and source.swtpm and not self.loses_tpm:
                target.swtpm.volume.take(source.swtpm.volume)
            target.memory, target.run_state = source.memory, RunState.PAUSED
            if target.runs_once_loaded:
                target.run_state = RunState.RUNNING
            target.turn_stream(StreamState.COMPLETED)


def _mirror_moves(qemu: FakeQemu) -> Iterator[Move]:
    for job, mirror in qemu.mirrors.items():
        export = qemu.nodes[mirror.node]
        if export is None or not export.served:
            yield Move("a mirror fails", partial(_fail, qemu, job))
        elif not mirror.ready:
            yield Move("a mirror is ready", partial(_get_ready, qemu, job, export))


def _fail(qemu: FakeQemu, job: str) -> None:
    del qemu.mirrors[job]
    qemu.emit("BLOCK_JOB_COMPLETED", device=job, error="Input/output error")


def _get_ready(qemu: FakeQemu, job: str, export: FakeExport) -> None:
    mirror = qemu.mirrors[job]
    export.volume.take(mirror.disk)
    mirror.ready = True
    qemu.emit("BLOCK_JOB_READY", device=job)


def _pause(source: FakeQemu) -> None:
    """What is left fits into the allowed pause."""
    source.ran = source.run_state is RunState.RUNNING
    source.run_state = RunState.FINISH_MIGRATE
    if source.ran:
        source.emit("STOP")
    source.turn_stream(StreamState.PRE_SWITCHOVER)


def _complete(source: FakeQemu) -> None:
    source.run_state, source.connection = RunState.POSTMIGRATE, None
    source.turn_stream(StreamState.COMPLETED)


def _tpm_is_gone(qemu: FakeQemu) -> bool:
    return qemu.swtpm is not None and not qemu.swtpm.alive
