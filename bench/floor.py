"""The floor: the same live migration with nothing but QMP. No database, no queue, no proof, nobody who may say no.

The commands and their order are the product's. What the product takes longer than this is the price of being sure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from bench.side import DISK, KEY_ID, Event, Side
from haulier.hypervisor.devices import node_name

_JOB = "bench-mirror"


@dataclass(frozen=True, slots=True)
class Knobs:
    """What a variant of the floor does otherwise. The defaults are the product's choices."""

    mirror: bool = True
    tls: bool = True
    blocking_writes: bool = False
    nodelay: bool = False
    stream_nodelay: bool = False
    daemon: bool = False
    flush_s: float = 0.0
    preallocate: bool = False
    downtime_limit_ms: int = 300
    max_bandwidth: int = 1 << 40
    capabilities: tuple[str, ...] = ()
    settle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pause:
    """Moments inside one pause, in ms since the guest stopped on the source."""

    pre_switchover: float
    mirrors_finished: float
    loaded: float
    resumed: float


async def move(source: Side, target: Side, knobs: Knobs) -> Pause:
    """Move the guest that runs on `source` to `target`, which is opened here; the source's QEMU stays, its guest ended.

    Raises AssertionError when a stream or mirror fails: a floor has no way back.
    """
    target.make_volumes(preallocate=knobs.preallocate)
    await target.open(incoming=True)
    ports = _free_ports(2)
    await _listen(target, ports, knobs)
    await _mirror(source, ports[0], knobs)
    await _send(source, ports[1], knobs)
    async with _flushing([source.disk, target.disk], knobs.flush_s):
        stopped = await source.event(lambda event: event.name == "STOP")
        paused = await source.event(_status("pre-switchover"))
    finished = await _finish_mirror(source, knobs) if knobs.mirror else paused.at
    await source.call("migrate-continue", state="pre-switchover")
    loaded = await target.event(_status("completed"))
    if knobs.mirror and knobs.daemon:
        await asyncio.to_thread(target.end_daemon)
    elif knobs.mirror:
        await target.call("nbd-server-stop")
    await target.call("cont")
    resumed = await target.event(lambda event: event.name == "RESUME")
    return Pause(*((at - stopped.at) * 1000 for at in (paused.at, finished, loaded.at, resumed.at)))


def _status(wanted: str) -> Callable[[Event], bool]:
    def check(event: Event) -> bool:
        if event.name != "MIGRATION":
            return False
        assert event.data["status"] not in ("failed", "cancelled"), event.data
        return bool(event.data["status"] == wanted)

    return check


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


async def _prepare(side: Side, knobs: Knobs, *capabilities: str) -> None:
    wanted = ("events", "return-path", *capabilities, *knobs.capabilities)
    await side.call("migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in wanted])
    if not knobs.tls:
        return
    await side.call("migrate-set-parameters", tls_creds=KEY_ID, tls_hostname="")


async def add_key(side: Side, *, server: bool) -> None:
    """Give a QEMU the key that both sides of the bench share."""
    role = {"endpoint": "server"} if server else {"endpoint": "client", "username": "bench"}
    folder = side.folder.parent / "key"
    await side.qmp.execute(
        "object-add", {"qom-type": "tls-creds-psk", "id": KEY_ID, "dir": os.fspath(folder), "verify-peer": True, **role}
    )


def write_key(folder: Path) -> None:
    """A fresh random key for the two sides below `folder`."""
    (folder / "key").mkdir(mode=0o700, exist_ok=True)
    path = folder / "key" / "keys.psk"
    path.touch(mode=0o600)
    path.write_text(f"bench:{os.urandom(32).hex()}\n")


async def _listen(target: Side, ports: list[int], knobs: Knobs) -> None:
    await add_key(target, server=True)
    await _prepare(target, knobs, "late-block-activate")
    if knobs.mirror and knobs.daemon:
        _serve_apart(target, ports[0])
    elif knobs.mirror:
        address = await _address(target, ports[0], knobs)
        await target.call("nbd-server-start", addr=address, **({"tls_creds": KEY_ID} if knobs.tls else {}))
        await target.call(
            "block-export-add", type="nbd", id="bench", node_name=node_name(DISK), name=DISK, writable=True
        )
    await target.call("migrate-incoming", uri=f"tcp:127.0.0.1:{ports[1]}")


async def _address(target: Side, port: int, knobs: Knobs) -> dict[str, object]:
    """Where the target's NBD server listens. QEMU before 8.1 leaves Nagle's delay on; a socket of ours has it off."""
    if not knobs.nodelay:
        return {"type": "inet", "data": {"host": "127.0.0.1", "port": str(port)}}
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        target.qmp.send_fd_scm(listener.fileno())
        await target.call("getfd", fdname="bench-nbd")
    return {"type": "fd", "data": {"str": "bench-nbd"}}


def _serve_apart(target: Side, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fd = listener.fileno()
        target.start_daemon(
            [
                "qemu-storage-daemon",
                "--object",
                f"tls-creds-psk,id={KEY_ID},dir={target.folder.parent}/key,endpoint=server,verify-peer=on",
                "--blockdev",
                f"driver=raw,node-name=d,file.driver=file,file.filename={target.disk}",
                "--nbd-server",
                f"addr.type=fd,addr.str={fd},tls-creds={KEY_ID}",
                "--export",
                f"type=nbd,id=e,node-name=d,name={DISK},writable=on",
            ],
            fd=fd,
        )


async def _mirror(source: Side, port: int, knobs: Knobs) -> None:
    """Copy the disk and wait until the mirror is ready."""
    objects = await source.call("qom-list", path="/objects")
    if any(each["name"] == KEY_ID for each in objects):
        await source.call("object-del", id=KEY_ID)
    await add_key(source, server=False)
    if not knobs.mirror:
        return
    server = {"type": "inet", "host": "127.0.0.1", "port": str(port)}
    node = {"driver": "nbd", "node-name": _JOB, "server": server, "export": DISK}
    await source.qmp.execute("blockdev-add", {**node, **({"tls-creds": KEY_ID} if knobs.tls else {})})
    mode = {"copy_mode": "write-blocking"} if knobs.blocking_writes else {}
    await source.call("blockdev-mirror", job_id=_JOB, device=node_name(DISK), target=_JOB, sync="full", **mode)
    ready = await source.event(lambda event: event.name.startswith("BLOCK_JOB"))
    assert ready.name == "BLOCK_JOB_READY", ready
    await asyncio.sleep(knobs.settle_s)


async def _send(source: Side, port: int, knobs: Knobs) -> None:
    await _prepare(source, knobs, "pause-before-switchover")
    await source.call(
        "migrate-set-parameters", max_bandwidth=knobs.max_bandwidth, downtime_limit=knobs.downtime_limit_ms
    )
    uri = f"tcp:127.0.0.1:{port}"
    if knobs.stream_nodelay:
        with socket.create_connection(("127.0.0.1", port)) as stream:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            source.qmp.send_fd_scm(stream.fileno())
            await source.call("getfd", fdname="bench-stream")
        uri = "fd:bench-stream"
        await source.call("migrate-set-parameters", tls_hostname="127.0.0.1")
    await source.call("migrate", uri=uri)


async def _finish_mirror(source: Side, knobs: Knobs) -> float:
    await source.call("block-job-cancel", device=_JOB)
    ended = await source.event(lambda event: event.name in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"))
    assert ended.name == "BLOCK_JOB_COMPLETED", ended
    assert not ended.data.get("error"), ended
    return ended.at


@contextlib.asynccontextmanager
async def _flushing(paths: list[Path], every_s: float) -> AsyncIterator[None]:
    """Bring both files to their disks again and again while the block works, so that the pause finds little to do."""

    async def loop() -> None:
        while True:
            await asyncio.gather(*(asyncio.to_thread(_flush, path) for path in paths))
            await asyncio.sleep(every_s)

    task = asyncio.create_task(loop()) if every_s else None
    try:
        yield
    finally:
        if task:
            task.cancel()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fdatasync(handle)
    finally:
        os.close(handle)
