"""One QEMU as its monitor shows it: QMP commands in, answers and events out, with QEMU's words and refusals.

A guest is what its RAM remembers: the number of the last write to its disk and to its TPM that it was told was done.
What a QEMU does without being told (RAM crosses, a mirror gets ready) is in pair.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from haulier.errors import StepFailed
from haulier.fakes.bell import FakeBell
from haulier.fakes.files import FakeVolume
from haulier.fakes.processes import FakeConnection, FakeListener, FakeProcess, FakeSwtpm


class RunState(StrEnum):
    """QEMU's own words for what the guest does."""

    RUNNING = "running"
    PRELAUNCH = "prelaunch"
    PAUSED = "paused"
    INMIGRATE = "inmigrate"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"


class StreamState(StrEnum):
    """QEMU's own words for how far a stream is; the first three are under way."""

    ACTIVE = "active"
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    NONE = "none"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNDER_WAY = (StreamState.ACTIVE, StreamState.PRE_SWITCHOVER, StreamState.DEVICE)


@dataclass(frozen=True, slots=True)
class Memory:
    """The guest's RAM: the last write to its disk and to its TPM that it was told was done."""

    disk: int = 0
    tpm: int = 0


@dataclass(eq=False, slots=True)
class FakeMirror:
    """A mirror job. The target holds what the disk holds when it gets ready, and again when it is finished."""

    disk: FakeVolume
    node: str
    speed: int = 0
    ready: bool = False


@dataclass(eq=False, slots=True)
class FakeQemu(FakeProcess):
    """A QEMU with its disks by device, whose guest waits to be let run.

    `nodes` are the clients of another QEMU's exports, None for one that was cut. `tell` are the monitors that hear its
    events.
    """

    disks: dict[str, FakeVolume]
    swtpm: FakeSwtpm | None
    run_state: RunState
    find_export: Callable[[int, str], FakeExport | None]
    memory: Memory = field(default_factory=Memory)
    ran: bool = False
    runs_once_loaded: bool = False
    stream: StreamState = StreamState.NONE
    connection: FakeConnection | None = None
    objects: set[str] = field(default_factory=set)
    fds: dict[str, FakeConnection | FakeListener] = field(default_factory=dict)
    nbd: FakeListener | None = None
    exports: set[str] = field(default_factory=set)
    nodes: dict[str, FakeExport | None] = field(default_factory=dict)
    mirrors: dict[str, FakeMirror] = field(default_factory=dict)
    client: object = None
    client_left: FakeBell = field(default_factory=FakeBell)
    tell: list[Callable[[str, dict[str, Any]], None]] = field(default_factory=list)

    @property
    def volumes(self) -> tuple[FakeVolume, ...]:
        return tuple(self.disks.values())

    @property
    def runs(self) -> bool:
        """Whether the guest's CPUs turn."""
        return self.alive and self.run_state is RunState.RUNNING

    def kill(self) -> None:
        self.alive = False
        for made in (self.nbd, self.connection, *self.fds.values()):
            if isinstance(made, FakeListener):
                made.closed = True
            elif made is not None:
                made.cut()
        self.emit("killed")
        self.client_left.ring()

    def emit(self, event: str, **data: object) -> None:
        for tell in self.tell:
            tell(event, data)

    # -- the guest ----------------------------------------------------------------------------------------------------

    def write_disk(self, device: str) -> None:
        """The running guest writes, and is told that it is done."""
        self.disks[device].written += 1
        self.memory = Memory(self.memory.disk + 1, self.memory.tpm)

    def write_tpm(self) -> bool:
        """The same for its TPM; False if that does not answer."""
        if self.swtpm is None or not self.swtpm.alive:
            return False
        self.swtpm.volume.written += 1
        self.memory = Memory(self.memory.disk, self.memory.tpm + 1)
        return True

    # -- commands -----------------------------------------------------------------------------------------------------

    def obey(self, command: str, arguments: dict[str, Any]) -> Any:  # noqa: ANN401 - QMP answers have every shape
        """Run one command. Raises StepFailed where QEMU refuses."""
        found = getattr(self, "_" + command.replace("-", "_"), None)
        return found(**{name.replace("-", "_"): value for name, value in arguments.items()}) if found else {}

    def _refuse(self, command: str, words: str) -> StepFailed:
        return StepFailed("qmp_refused", f"QEMU refused {command}: {words}", "QEMU's own words; see its log.")

    def _query_status(self) -> dict[str, Any]:
        return {"status": str(self.run_state)}

    def _cont(self) -> None:
        if self.run_state is RunState.INMIGRATE:
            self.runs_once_loaded = True
            return
        if self.run_state is RunState.FINISH_MIGRATE:
            raise self._refuse("cont", "Migration is not finalized yet")
        self.run_state = RunState.RUNNING
        self.emit("RESUME")

    def _stop(self) -> None:
        if self.run_state is RunState.RUNNING:
            self.run_state = RunState.PAUSED
            self.emit("STOP")

    def _qom_list(self, path: str) -> list[dict[str, str]]:
        del path
        return [{"name": name} for name in sorted(self.objects)]

    def _object_add(self, id: str, **_: object) -> None:
        if id in self.objects:
            raise self._refuse("object-add", f"attempt to add duplicate property '{id}'")
        self.objects.add(id)

    def _object_del(self, id: str) -> None:
        self.objects.remove(id)

    # -- disks --------------------------------------------------------------------------------------------------------

    def _nbd_server_start(self, addr: dict[str, Any], tls_creds: str | None = None) -> None:
        self._needs_key("nbd-server-start", tls_creds)
        listener = self.fds.pop(addr["data"]["str"])
        if self.nbd is not None or not isinstance(listener, FakeListener):
            raise self._refuse("nbd-server-start", "NBD server already running")
        self.nbd = listener

    def _block_export_add(self, name: str, **_: object) -> None:
        self.exports.add(name)

    def _nbd_server_stop(self) -> None:
        if self.nbd is None:
            raise self._refuse("nbd-server-stop", "NBD server not running")
        self.nbd.closed, self.nbd = True, None
        self.exports.clear()

    def _blockdev_add(
        self, node_name: str, server: dict[str, str], export: str, tls_creds: str = "", **_: object
    ) -> None:
        self._needs_key("blockdev-add", tls_creds)
        found = self.find_export(int(server["port"]), export)
        if found is None or node_name in self.nodes:
            raise self._refuse("blockdev-add", "connection refused, or a duplicate node")
        self.nodes[node_name] = found

    def _blockdev_del(self, node_name: str) -> None:
        del self.nodes[node_name]

    def _query_named_block_nodes(self, flat: bool) -> list[dict[str, str]]:
        del flat
        return [{"node-name": name} for name in (*self.nodes, *(f"drive-{device}" for device in self.disks))]

    def _blockdev_mirror(self, job_id: str, device: str, target: str, speed: int, **_: object) -> None:
        self.mirrors[job_id] = FakeMirror(self.disks[device.removeprefix("drive-")], target, speed)

    def _query_block_jobs(self) -> list[dict[str, Any]]:
        return [
            {"device": job, "ready": each.ready, "speed": each.speed, "offset": 0, "len": 1}
            for job, each in self.mirrors.items()
        ]

    def _block_job_set_speed(self, device: str, speed: int) -> None:
        if device not in self.mirrors:
            raise self._refuse("block-job-set-speed", f"Block job '{device}' not found")
        self.mirrors[device].speed = speed

    def _block_job_cancel(self, device: str, force: bool = False) -> None:
        """A ready mirror that is not forced brings the last writes over."""
        mirror = self.mirrors.pop(device, None)
        if mirror is None:
            raise self._refuse("block-job-cancel", f"Block job '{device}' not found")
        export = self.nodes[mirror.node]
        if force or not mirror.ready:
            self.emit("BLOCK_JOB_CANCELLED", device=device)
        elif export is None or not export.served:
            self.emit("BLOCK_JOB_COMPLETED", device=device, error="Input/output error")
        else:
            export.volume.take(mirror.disk)
            self.emit("BLOCK_JOB_COMPLETED", device=device)

    # -- the stream ---------------------------------------------------------------------------------------------------

    def _needs_key(self, command: str, tls_creds: str | None) -> None:
        if tls_creds and tls_creds not in self.objects:
            raise self._refuse(command, f"No TLS credentials with id '{tls_creds}'")

    def _migrate_set_parameters(self, tls_creds: str | None = None, **_: object) -> None:
        self._needs_key("migrate-set-parameters", tls_creds)

    def _query_migrate(self) -> dict[str, Any]:
        return {"status": str(self.stream), "ram": {"total": 1, "transferred": 1}}

    def _migrate(self, uri: str) -> None:
        if self.stream in UNDER_WAY:
            raise self._refuse("migrate", "There's a migration process in progress")
        self._begin_stream(uri)

    def _migrate_incoming(self, uri: str) -> None:
        if self.run_state is not RunState.INMIGRATE or self.stream is not StreamState.NONE:
            raise self._refuse("migrate-incoming", "The incoming migration has already been started")
        self._begin_stream(uri)

    def _begin_stream(self, uri: str) -> None:
        connection = self.fds.pop(uri.removeprefix("fd:"))
        if not isinstance(connection, FakeConnection):
            raise self._refuse("migrate", f"{uri} does not accept migrations")
        self.connection = connection
        self.turn_stream(StreamState.ACTIVE)

    def _migrate_continue(self, state: str) -> None:
        if self.stream != state:
            raise self._refuse("migrate-continue", f"Migration not in expected state: {self.stream}")
        self.turn_stream(StreamState.DEVICE)

    def _migrate_cancel(self) -> None:
        if self.stream in UNDER_WAY:
            self.lose_stream(StreamState.CANCELLED)

    def _query_yank(self) -> list[dict[str, str]]:
        streams = [{"type": "migration"}] if self.connection is not None else []
        return [*streams, *({"type": "block-node", "node-name": name} for name in self.nodes)]

    def _yank(self, instances: list[dict[str, str]]) -> None:
        for instance in instances:
            if instance["type"] == "migration" and self.connection is not None:
                self.connection.cut()
            elif instance["type"] != "migration":
                self.nodes[instance["node-name"]] = None

    def turn_stream(self, to: StreamState) -> None:
        self.stream = to
        self.emit("MIGRATION", status=str(to))

    def lose_stream(self, how: StreamState) -> None:
        """On the source: the stream ends without having been completed. The guest is let go later (QEMU 10)."""
        if self.connection is not None:
            self.connection.cut()
            self.connection = None
        self.turn_stream(how)

    @property
    def holds_back_guest(self) -> bool:
        """Whether the guest still stands as in a stream's pause, although the stream has ended."""
        return self.run_state is RunState.FINISH_MIGRATE and self.stream in (StreamState.FAILED, StreamState.CANCELLED)

    def let_go(self) -> None:
        """After a stream that was not completed: a guest that ran runs again, asking nobody."""
        self.run_state = RunState.RUNNING if self.ran else RunState.PAUSED
        if self.ran:
            self.emit("RESUME")


@dataclass(frozen=True, slots=True)
class FakeExport:
    """One disk that a QEMU serves over NBD."""

    server: FakeQemu
    device: str

    @property
    def served(self) -> bool:
        return self.server.alive and self.device in self.server.exports

    @property
    def volume(self) -> FakeVolume:
        return self.server.disks[self.device]
