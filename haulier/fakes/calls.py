"""What haulier/hypervisor does to a host, done to the fake ones: the same names, arguments and errors.

Only what ends in a program, a socket or a file's contents is here. All the rest of that room (the order of QMP
commands, what is waited for, pid files, folders) runs on the fakes as it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from haulier.definition.storage import Image
from haulier.errors import StepFailed
from haulier.fakes.bell import FakeBell
from haulier.fakes.effects import effect, look
from haulier.fakes.files import FakePath, FakeVolume
from haulier.fakes.pair import FakePair
from haulier.fakes.processes import FakeCarrier, FakeConnection, FakeListener, FakeProcess, FakeSwtpm
from haulier.fakes.qemu import FakeQemu, RunState
from haulier.hypervisor import carrier, facts, greeting, images, machine, monitor, nbd, processes, sockets, swtpm, tls
from haulier.hypervisor import tpm_identity as identities
from haulier.hypervisor import tpm_state as states
from haulier.hypervisor.carrier import CarrierExport, RemoteExport
from haulier.hypervisor.command_line import MachineSpec
from haulier.hypervisor.images import ImageInfo
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.monitor import Event, MonitorLost
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.processes import Daemon
from haulier.hypervisor.tpm_state import TpmState

_SCRATCH = "identity-"


# -- processes ---------------------------------------------------------------------------------------------------------


def _is_ours(pid: int, token: str) -> bool:
    found = FakePair.current.find(token)
    return found is not None and found.pid == pid


def end(daemon: Daemon, *, patience_s: float = 5.0) -> bool:
    del patience_s
    found = FakePair.current.find(daemon.token)
    if found is not None:
        effect()
        found.kill()
    daemon.pid_file.unlink(missing_ok=True)
    return found is not None


def wait_for_end(daemon: Daemon, *, seconds: float) -> bool:
    del seconds
    return daemon.pid() is None


def holders(path: FakePath) -> list[int]:
    """The pids of all processes that have it open."""
    pair = FakePair.current
    found = path.disk.contents.get(path)
    opened = {each.pid: each.volumes for each in pair.running(FakeProcess)}
    return [pid for pid, volumes in opened.items() if found in volumes]


def start_swtpm(place: VmPlace, volume: FakePath, *, facts: swtpm.SwtpmFacts) -> None:
    del facts
    effect()
    pair = FakePair.current
    pair.add(FakeSwtpm(pair.next_pid(), place.swtpm.token, _opened(volume)))


async def launch(place: VmPlace, spec: MachineSpec) -> int:
    effect()
    pair = FakePair.current
    tpm = pair.find(place.swtpm.token)
    if spec.tpm_socket is not None and not isinstance(tpm, FakeSwtpm):
        raise StepFailed("qemu_not_started", "QEMU did not start: no TPM at the socket", "QEMU's own words.")
    disks = {drive.device: _opened(drive.path) for drive in spec.drives if drive.path is not None}
    state = RunState.INMIGRATE if spec.incoming else RunState.PRELAUNCH
    made = FakeQemu(
        pair.next_pid(), place.qemu.token, disks, tpm if isinstance(tpm, FakeSwtpm) else None, state, pair.export
    )
    pair.add(made)
    await asyncio.sleep(0)
    return made.pid


def _opened(path: PurePath) -> FakeVolume:
    try:
        return FakePath(path).volume()
    except FileNotFoundError as error:
        raise StepFailed("volume_missing", f"{path} is not there", "QEMU's own words.") from error


# -- files -------------------------------------------------------------------------------------------------------------


def create_image(path: FakePath, *, format: str, size_bytes: int) -> None:
    del format, size_bytes
    effect()
    if path.exists():
        raise StepFailed(images.VOLUME_EXISTS, f"{path} is there already", "Nothing is overwritten; look whose it is.")
    path.disk.contents[path] = FakeVolume()


def destroy_image(path: FakePath) -> None:
    """Whoever has it open finds zeroes."""
    try:
        found = path.volume()
    except FileNotFoundError:
        return
    effect()
    found.take(FakeVolume())
    path.unlink(missing_ok=True)


def image_info(path: FakePath, *, format: str) -> ImageInfo:
    del path
    return ImageInfo(
        format, size_bytes=1 << 30 if format == "qcow2" else 1 << 20, used_bytes=0, backing=None, snapshots=0
    )


def read_state(path: FakePath) -> TpmState:
    try:
        found = path.volume().as_bytes()
    except FileNotFoundError as error:
        raise StepFailed("tpm_state_unreadable", f"the TPM state {path} cannot be read", "Is it there?") from error
    return TpmState(found, found)


def read_identity(container: bytes, *, swtpm: str, scratch: FakePath) -> str:
    """A scratch swtpm is asked on a copy."""
    del swtpm
    copy = scratch / f"{_SCRATCH}1"
    copy.write_bytes(container)
    try:
        return FakeVolume.from_bytes(container).identity or ""
    finally:
        copy.unlink()


def forget_scratch(scratch: FakePath) -> None:
    for path in scratch.glob(f"{_SCRATCH}*"):
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """A folder with one migration's key."""

    path: FakePath

    def write(self, cluster_secret: bytes, migration_key: str) -> None:
        del cluster_secret, migration_key
        if not self.path.exists():
            self.path.write_text("key")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def as_properties(self, *, server: bool) -> dict[str, object]:
        if not self.path.exists():
            raise StepFailed("qmp_refused", "QEMU refused object-add: cannot load credentials", "The key file is gone.")
        return {"id": tls.OBJECT_ID, "server": server}


# -- connections -------------------------------------------------------------------------------------------------------


def start_carrier(place: VmPlace, exports: Sequence[CarrierExport], *, server: NbdServer, keys: object) -> None:
    del keys
    effect()
    _require_free(server, words="Address already in use")
    pair = FakePair.current
    opened = {export.name: _opened(export.image.path) for export in exports}
    pair.add(FakeCarrier(pair.next_pid(), place.carrier.token, server.port, opened))


async def send_file(
    image: Image,
    to: RemoteExport,
    *,
    report: Callable[[int], None],
    max_bytes_per_s: int = 0,
    onto_zeroes: bool = True,
) -> None:
    del max_bytes_per_s, onto_zeroes
    effect()
    FakePair.current.receive(to.server.port, to.export, _opened(image.path))
    report(1)
    await asyncio.sleep(0)


def listen_on(server: NbdServer) -> FakeListener:
    effect()
    _require_free(server, words="cannot be listened on", code=sockets.PORT_TAKEN)
    made = FakeListener(server.port, asyncio.get_running_loop())
    FakePair.current.listeners.append(made)
    return made


def _require_free(server: NbdServer, *, words: str, code: str = "carrier_not_started") -> None:
    pair = FakePair.current
    if pair.listener(server.port) or pair.carrier(server.port):
        raise StepFailed(code, f"{server.port}: {words}", "Another port.")


async def require_answer(server: NbdServer) -> None:
    look()
    pair = FakePair.current
    await asyncio.sleep(0)
    if not (pair.listener(server.port) or pair.carrier(server.port)):
        raise StepFailed("target_unreachable", f"no NBD server answers on {server.port}", "A firewall between them?")


async def connect_to(server: NbdServer) -> FakeConnection:
    effect()
    listener = FakePair.current.listener(server.port)
    if listener is None:
        raise StepFailed("target_unreachable", f"no connection to {server.port}", "A firewall between them?")
    made = listener.connect()
    await asyncio.sleep(0)
    return made


async def hand_to_qemu(monitor: FakeMonitor, made: FakeConnection | FakeListener, name: str) -> None:
    with made:
        await monitor.take(made, name)


async def accept(listener: FakeListener, key: bytes | None) -> FakeConnection:
    del key
    return await listener.accept()


async def greet(connection: FakeConnection, key: bytes) -> None:
    """Raises StepFailed when the other side does not answer for some seconds."""
    del key
    with suppress(TimeoutError):
        async with asyncio.timeout(5.0):
            await connection.changed.until(lambda: connection.taken or not connection.whole)
    if not (connection.taken and connection.whole):
        raise StepFailed("stranger", "the target does not prove that it knows the key", "Who listens there?")


# -- the monitor -------------------------------------------------------------------------------------------------------


class FakeMonitor:
    """An open conversation with a fake QEMU."""

    def __init__(self, qemu: FakeQemu, path: FakePath) -> None:
        self._qemu = qemu
        self._path = path
        self._events: deque[Event] = deque()
        self._heard = FakeBell()

    def hear(self, name: str, data: dict[str, Any]) -> None:
        if self._qemu.alive:
            self._events.append(Event(name, data, at=FakePair.current.time))
        self._heard.ring()

    async def execute(self, command: str, /, **arguments: Any) -> Any:  # noqa: ANN401 - as in monitor.py
        call = {name.replace("_", "-"): value for name, value in arguments.items() if value is not None}
        return await self.execute_raw(command, call)

    async def execute_raw(self, command: str, arguments: dict[str, Any], *, urgent: bool = False) -> Any:  # noqa: ANN401
        del urgent
        look() if command.startswith(("query-", "qom-")) else effect()
        self._require_alive()
        answer = self._qemu.obey(command, arguments)
        await asyncio.sleep(0)
        self._require_alive()
        return answer

    async def take(self, made: FakeConnection | FakeListener, name: str) -> None:
        effect()
        self._require_alive()
        if isinstance(made, FakeListener):
            made.owner, made.loop = self._qemu, None
        else:
            made.handed = True
        self._qemu.fds[name] = made
        await asyncio.sleep(0)

    def _require_alive(self) -> None:
        if not self._qemu.alive:
            raise MonitorLost(Path(self._path))

    async def next_event(self) -> Event:
        await self._heard.until(lambda: self._events or not self._qemu.alive)
        if not self._events:
            self._require_alive()
        return self._events.popleft()

    async def wait_for(self, wanted: Callable[[Event], bool]) -> Event:
        while True:
            event = await self.next_event()
            if wanted(event):
                return event


class _OpenMonitor:
    """A monitor serves one client at a time; the next waits, for so long."""

    def __init__(self, path: FakePath) -> None:
        self._path = path
        self._qemu: FakeQemu | None = None

    async def __aenter__(self) -> FakeMonitor:
        qemu = FakePair.current.find(str(self._path.with_name("qemu.pid")))
        if isinstance(qemu, FakeQemu) and await _is_free(qemu):
            self._qemu = qemu
            made = FakeMonitor(qemu, self._path)
            qemu.client, qemu.tell = made, [made.hear]
            return made
        raise StepFailed("qemu_not_there", f"no QEMU answers on {self._path}", "Does the VM run?")

    async def __aexit__(self, *_: object) -> None:
        if self._qemu is not None:
            self._qemu.client, self._qemu.tell = None, []
            self._qemu.client_left.ring()


async def _is_free(qemu: FakeQemu) -> bool:
    """Whether its monitor can be had, after some time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(20.0):
            await qemu.client_left.until(lambda: qemu.client is None or not qemu.alive)
    return qemu.alive and qemu.client is None


CALLS: Mapping[object, object] = {
    processes._is_ours: _is_ours,
    processes.end: end,
    processes.wait_for_end: wait_for_end,
    processes.last_words: lambda *_, **__: "",
    processes.log_size: lambda _: 0,
    processes.holders: holders,
    swtpm.start_swtpm: start_swtpm,
    machine.launch: launch,
    images.create_image: create_image,
    images.destroy_image: destroy_image,
    images.image_info: image_info,
    images.free_bytes: lambda _: 1 << 40,
    carrier.start_carrier: start_carrier,
    carrier.send_file: send_file,
    states.read_state: read_state,
    identities.read_identity: read_identity,
    identities.forget_scratch: forget_scratch,
    tls.KeyFolder: KeyFolder,
    nbd.require_answer: require_answer,
    sockets.listen_on: listen_on,
    sockets.connect_to: connect_to,
    sockets.hand_to_qemu: hand_to_qemu,
    greeting.accept: accept,
    greeting.greet: greet,
    monitor.open_monitor: _OpenMonitor,
    facts.memory: lambda: {"ram_bytes": 1 << 40, "ram_free_bytes": 1 << 40},
}
"""By the real one of haulier/hypervisor, what stands for it."""
