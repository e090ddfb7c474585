"""A real guest's disk that came as a difference: delivered onto an overlay, run on it, merged into the base."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from haulier.errors import StepFailed
from haulier.hypervisor import disks, generations, machine, overlays, stream
from haulier.hypervisor.devices import node_name, overlay_node
from haulier.hypervisor.generations import DiskBackup, bitmap_name
from haulier.hypervisor.images import create_overlay
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.monitor import Monitor
from haulier.hypervisor.nbd import NbdServer
from tests.contract.real import disk, keys, qemu, run, server
from tests.contract.test_generations_real import CLUSTER, FORMATS, MIB, machine_with_disk, read, write

pytestmark = pytest.mark.real
BITMAP = bitmap_name(1, 2)


@asynccontextmanager
async def on_an_overlay(place: VmPlace, format: str, **fields: bool) -> AsyncIterator[Monitor]:
    """A QEMU with an older copy of a disk as base, full of `a`, and an overlay over it."""
    base = disk(place, b"a" * MIB if format == "raw" else b"", format=format)
    assert base.path
    overlay = place.logs / "overlay.qcow2"
    create_overlay(overlay, base=base.path, base_format=format)
    async with qemu(place, dataclasses.replace(base, overlay=overlay), **fields) as monitor:
        await stream.ensure_key(monitor, keys(place.run / "keys"), server=True)
        yield monitor


async def dirty(monitor: Monitor, node: str, name: str) -> int | None:
    nodes = await monitor.execute("query-named-block-nodes", flat=True)
    found = [each for node_ in nodes if node_["node-name"] == node for each in node_.get("dirty-bitmaps", ())]
    return next((int(each["count"]) for each in found if each.get("name") == name), None)


@pytest.mark.parametrize("format", FORMATS)
def test_overlay_is_merged_under_the_running_guest(make_place: Callable[[str], VmPlace], format: str) -> None:
    here = make_place("target")
    persistent = format == "qcow2"

    async def work() -> None:
        async with on_an_overlay(here, format) as monitor:
            await write(monitor, "b", 0, 4 * CLUSTER)
            for _ in range(2):
                await overlays.record_writes(monitor, [(overlay_node("virtio0"), False)], bitmap=BITMAP)
            await machine.resume(monitor)
            await write(monitor, "c", 8 * CLUSTER)
            for _ in range(2):
                await merge(monitor, bitmap=BITMAP, persistent=persistent)
            assert await dirty(monitor, node_name("virtio0"), BITMAP) == CLUSTER, "what the guest wrote, and no more"
            await write(monitor, "d", 10 * CLUSTER)
            assert await dirty(monitor, node_name("virtio0"), BITMAP) == 2 * CLUSTER
            names = [each["node-name"] for each in await monitor.execute("query-named-block-nodes", flat=True)]
            assert not [name for name in names if "overlay" in name]

    run(work())
    machine.stop_now(here)
    content = read(here.logs / f"disk.{format}", format)
    assert content[: 4 * CLUSTER] == b"b" * 4 * CLUSTER
    assert (content[8 * CLUSTER : 9 * CLUSTER], content[10 * CLUSTER : 11 * CLUSTER]) == (
        b"c" * CLUSTER,
        b"d" * CLUSTER,
    )


def test_merge_is_taken_up_again_where_it_was_left(make_place: Callable[[str], VmPlace]) -> None:
    """By a conversation that did not hear its events."""
    here = make_place("target")

    async def work() -> None:
        async with on_an_overlay(here, "raw") as monitor:
            await overlays.record_writes(monitor, [(overlay_node("virtio0"), False)], bitmap=BITMAP)
            await write(monitor, "b", 0)
            await monitor.execute("block-commit", job_id="haulier-merge-virtio0", device=overlay_node("virtio0"))
            await monitor.wait_for(lambda event: event.name == "BLOCK_JOB_READY")
            await merge(monitor, bitmap=BITMAP, persistent=False)
            assert await dirty(monitor, node_name("virtio0"), BITMAP) == CLUSTER

    run(work())
    machine.stop_now(here)
    assert read(here.logs / "disk.raw", "raw")[:CLUSTER] == b"b" * CLUSTER


def test_merge_that_has_died_is_no_merge(make_place: Callable[[str], VmPlace]) -> None:
    """The guest's disk is base and overlay, and the overlay must stay."""
    here = make_place("target")

    async def work() -> None:
        async with on_an_overlay(here, "raw") as monitor:
            await write(monitor, "b", 0)
            await overlays.bring_together(monitor, "virtio0")
            await monitor.execute("block-job-cancel", device="haulier-merge-virtio0", force=True)
            await monitor.wait_for(lambda event: event.name == "BLOCK_JOB_CANCELLED")
            with pytest.raises(StepFailed, match="merge_failed"):
                await overlays.go_on_with_base(monitor, "virtio0", bitmap=None, persistent=False)
            assert not await overlays.is_on_base(monitor, "virtio0")
            await merge(monitor, bitmap=None, persistent=False)

    run(work())


@pytest.mark.parametrize("format", FORMATS)
def test_difference_comes_first_and_then_what_is_written(make_place: Callable[[str], VmPlace], format: str) -> None:
    """As migration onto a replica does it: backups by a bitmap, then a mirror of later writes, onto one export."""
    here, there = make_place("source"), make_place("target")
    since = bitmap_name(1, 1)

    async def work() -> None:
        async with machine_with_disk(here, format) as source, on_an_overlay(there, "raw", incoming=True) as target:
            await write(source, "a", 0, MIB)
            await overlays.record_writes(source, [(node_name("virtio0"), False)], bitmap=since)
            await write(source, "b", 0, 2 * CLUSTER)
            at = server()
            await disks.serve_disks(target, [("virtio0", "disk")], server=at, tls=True, overlays=["virtio0"])
            mirror = disks.Mirror("virtio0", "disk", at, tls=True)
            await disks.connect_export(source, mirror.job, "virtio0", server=at, tls=True)
            backup = DiskBackup("virtio0", "disk", format, "virtio0", since)
            jobs = await generations.begin_generation(source, [backup], bitmap="haulier-round-1")
            sent = await disks.wait_until_done(source, jobs)
            assert sent == {"virtio0": 2 * CLUSTER}
            await disks.follow_writes(source, mirror)
            await write(source, "c", 4 * CLUSTER)
            await disks.wait_until_ready(source, [mirror])
            await disks.finish_mirrors(source, [mirror])
            await disks.stop_serving(target)
            await disks.drop_jobs(source)
            await merge(target, bitmap=None, persistent=False)

    run(work())
    machine.stop_now(there)
    expected = b"b" * 2 * CLUSTER + b"a" * 2 * CLUSTER + b"c" * CLUSTER + b"a" * 11 * CLUSTER
    assert read(there.logs / "disk.raw", "raw") == expected


async def merge(monitor: Monitor, *, bitmap: str | None, persistent: bool) -> None:
    """As the target does it, between two moments in which its process may die."""
    await overlays.bring_together(monitor, "virtio0")
    await overlays.go_on_with_base(monitor, "virtio0", bitmap=bitmap, persistent=persistent)
    assert await overlays.is_on_base(monitor, "virtio0")
    await overlays.forget_overlay(monitor, "virtio0")


class Wire:
    """Passes on what goes to a server, and counts it."""

    def __init__(self, to: NbdServer) -> None:
        self._to = to
        self.bytes = 0

    @asynccontextmanager
    async def tapped(self) -> AsyncIterator[NbdServer]:
        tap = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        try:
            yield NbdServer("127.0.0.1", int(tap.sockets[0].getsockname()[1]))
        finally:
            tap.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._to.address, self._to.port)
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(1 << 16):
                self.bytes += len(piece)
                writer.write(piece)
                await writer.drain()
        writer.close()


@pytest.mark.parametrize("format", FORMATS)
def test_little_more_than_the_difference_is_on_the_wire(make_place: Callable[[str], VmPlace], format: str) -> None:
    here, there = make_place("source"), make_place("target")
    since, dirty_bytes = bitmap_name(1, 1), 10 * CLUSTER

    async def work() -> int:
        async with machine_with_disk(here, format) as source, on_an_overlay(there, "raw", incoming=True) as target:
            await write(source, "a", 0, MIB)
            await overlays.record_writes(source, [(node_name("virtio0"), False)], bitmap=since)
            for cluster in range(0, 15, 3):
                await write(source, "b", cluster * CLUSTER, 2 * CLUSTER)
            at = server()
            await disks.serve_disks(target, [("virtio0", "disk")], server=at, tls=True, overlays=["virtio0"])
            wire = Wire(at)
            async with wire.tapped() as tap:
                mirror = disks.Mirror("virtio0", "disk", tap, tls=True)
                await disks.connect_export(source, mirror.job, "virtio0", server=tap, tls=True)
                backup = DiskBackup("virtio0", "disk", format, "virtio0", since)
                jobs = await generations.begin_generation(source, [backup], bitmap="haulier-round-1", lasting=False)
                await disks.wait_until_done(source, jobs)
                await disks.follow_writes(source, mirror)
                await disks.wait_until_ready(source, [mirror])
                await disks.finish_mirrors(source, [mirror])
                await disks.drop_jobs(source)
            return wire.bytes

    sent = run(work())
    assert dirty_bytes < sent <= 1.1 * dirty_bytes, sent / dirty_bytes
