"""The floor: the same live migration with nothing but QMP. No database, no queue, no proof, nobody who may say no.

The commands and their order are the product's. What the product takes longer than this is the price of being sure.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.side import DISK, Event, Side
from haulier.hypervisor.command_line import MachineSpec, node_name

_JOB = "bench-mirror"
_KEY = "bench-tls"
_HERE = "127.0.0.1"
_MIB = 1 << 20


class MoveFailed(Exception):
    """A stream or a mirror ended badly; the event says how."""


def _require(holds: bool, event: Event) -> None:
    if not holds:
        raise MoveFailed(f"{event.name} {event.data}")


@dataclass(frozen=True, slots=True)
class Knobs:
    """What a variant of the floor does otherwise. The defaults are the fastest that was found."""

    mirror: bool = True
    blocking_writes: bool = False
    nbd_nodelay: bool = True
    stream_nodelay: bool = True
    max_bandwidth_bytes_per_s: int = 32 * _MIB
    downtime_limit_ms: int = 1


@dataclass(frozen=True, slots=True)
class Pause:
    """The parts of one pause in ms, one after the other; together they are the pause."""

    to_pre_switchover: float
    to_mirrors_finished: float
    to_loaded: float
    to_resumed: float

    @property
    def total(self) -> float:
        return self.to_pre_switchover + self.to_mirrors_finished + self.to_loaded + self.to_resumed


@dataclass(slots=True)
class Shuttle:
    """A VM that is moved to and fro between two folders below `folder`."""

    folder: Path
    machine: MachineSpec
    disk_bytes: int
    knobs: Knobs = field(default_factory=Knobs)
    _at: Side = field(init=False)
    _moves: int = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Shuttle]:
        """The guest runs inside the block; after it nothing is left running."""
        _write_key(self.folder)
        self._at = self._next_side()
        try:
            self._at.make_volumes()
            await self._at.open(incoming=False)
            await self._at.call("cont")
            yield self
        finally:
            await self._at.close()

    async def move(self) -> Pause:
        """Move the guest to the other folder. Raises MoveFailed: a floor has no way back."""
        source, target = self._at, self._next_side()
        try:
            pause = await _move(source, target, self.knobs)
        except BaseException:
            await target.close()
            raise
        self._at = target
        await source.close()
        return pause

    def _next_side(self) -> Side:
        self._moves += 1
        return Side(self.folder / f"side{self._moves % 2}", self.machine, self.disk_bytes)


async def _move(source: Side, target: Side, knobs: Knobs) -> Pause:
    target.make_volumes()
    await target.open(incoming=True)
    nbd_port, stream_port = await _listen(target, knobs)
    await _mirror(source, nbd_port, knobs)
    await _send(source, stream_port, knobs)
    stopped = await source.event(_named("STOP"))
    switching = await source.event(_status("pre-switchover"))
    finished = await _finish_mirror(source) if knobs.mirror else switching
    await source.call("migrate-continue", state="pre-switchover")
    loaded = await target.event(_status("completed"))
    if knobs.mirror:
        await target.call("nbd-server-stop")
    await target.call("cont")
    resumed = await target.event(_named("RESUME"))
    moments = [event.at * 1000 for event in (stopped, switching, finished, loaded, resumed)]
    return Pause(*(after - before for before, after in itertools.pairwise(moments)))


async def _listen(target: Side, knobs: Knobs) -> tuple[int, int]:
    """Open the target's two servers. Returns the ports of NBD and of the stream."""
    await _add_key(target, server=True)
    await _allow(target, "late-block-activate")
    nbd_port = await _serve(target, nodelay=knobs.nbd_nodelay) if knobs.mirror else 0
    stream_port = _free_port()
    await target.call("migrate-incoming", uri=f"tcp:{_HERE}:{stream_port}")
    return nbd_port, stream_port


async def _serve(target: Side, *, nodelay: bool) -> int:
    """Serve the disk. A socket that was accepted has the options of the one that listens."""
    listener = socket.create_server((_HERE, 0))
    port: int = listener.getsockname()[1]
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(nodelay))
    await target.give(listener, "bench-nbd")
    await target.call("nbd-server-start", addr={"type": "fd", "data": {"str": "bench-nbd"}}, tls_creds=_KEY)
    await target.call("block-export-add", type="nbd", id="bench", node_name=node_name(DISK), name=DISK, writable=True)
    return port


async def _mirror(source: Side, port: int, knobs: Knobs) -> None:
    """Copy the disk and wait until the mirror is ready."""
    await _add_key(source, server=False)
    if not knobs.mirror:
        return
    server = {"type": "inet", "host": _HERE, "port": str(port)}
    await source.qmp.execute(
        "blockdev-add", {"driver": "nbd", "node-name": _JOB, "server": server, "export": DISK, "tls-creds": _KEY}
    )
    mode = "write-blocking" if knobs.blocking_writes else "background"
    await source.call("blockdev-mirror", job_id=_JOB, device=node_name(DISK), target=_JOB, sync="full", copy_mode=mode)
    ready = await source.event(lambda event: event.name.startswith("BLOCK_JOB"))
    _require(ready.name == "BLOCK_JOB_READY", ready)


async def _send(source: Side, port: int, knobs: Knobs) -> None:
    await _allow(source, "pause-before-switchover")
    await source.call(
        "migrate-set-parameters",
        max_bandwidth=knobs.max_bandwidth_bytes_per_s,
        downtime_limit=knobs.downtime_limit_ms,
    )
    stream = socket.create_connection((_HERE, port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(knobs.stream_nodelay))
    await source.give(stream, "bench-stream")
    await source.call("migrate", uri="fd:bench-stream")


async def _finish_mirror(source: Side) -> Event:
    await source.call("block-job-cancel", device=_JOB)
    ended = await source.event(lambda event: event.name in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"))
    _require(ended.name == "BLOCK_JOB_COMPLETED" and not ended.data.get("error"), ended)
    return ended


async def _allow(side: Side, capability: str) -> None:
    wanted = ("events", "return-path", capability)
    await side.call("migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in wanted])
    await side.call("migrate-set-parameters", tls_creds=_KEY, tls_hostname="")


async def _add_key(side: Side, *, server: bool) -> None:
    """Give a QEMU the key; one that came here as a target has it as a server's."""
    if any(each["name"] == _KEY for each in await side.call("qom-list", path="/objects")):
        await side.call("object-del", id=_KEY)
    role = {"endpoint": "server"} if server else {"endpoint": "client", "username": "bench"}
    key = {"qom-type": "tls-creds-psk", "id": _KEY, "dir": os.fspath(side.folder.parent), "verify-peer": True}
    await side.qmp.execute("object-add", {**key, **role})


def _write_key(folder: Path) -> None:
    path = folder / "keys.psk"
    path.touch(mode=0o600)
    path.write_text(f"bench:{os.urandom(32).hex()}\n")


def _free_port() -> int:
    with socket.create_server((_HERE, 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _named(name: str) -> Callable[[Event], bool]:
    return lambda event: event.name == name


def _status(wanted: str) -> Callable[[Event], bool]:
    def check(event: Event) -> bool:
        status = event.data.get("status") if event.name == "MIGRATION" else None
        _require(status not in ("failed", "cancelled"), event)
        return status == wanted

    return check
