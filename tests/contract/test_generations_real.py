"""Generations of real disks, sent by a QEMU or by the reader into a carrier's overlay, and merged into a base."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from haulier.definition.storage import Image
from haulier.errors import StepFailed
from haulier.hypervisor import disks, generations, machine, stream
from haulier.hypervisor.carrier import CarrierExport, start_carrier, stop_carrier
from haulier.hypervisor.generations import Bitmap, DiskBackup, bitmap_name
from haulier.hypervisor.images import create_image, create_overlay, merge_overlay
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.monitor import Monitor, MonitorLost
from haulier.hypervisor.reader import ReadDisk, open_reader
from tests.contract.real import disk, keys, qemu, run, server

pytestmark = pytest.mark.real

MIB, CLUSTER = 1 << 20, 64 << 10
REPLICATION = 3
FORMATS = ("raw", "qcow2")


class Replica:
    """The target's side: a base in the disk's own format, and an overlay for what comes."""

    def __init__(self, place: VmPlace, format: str, *, size_bytes: int = MIB) -> None:
        self._place = place
        self._format = format
        self.base = place.logs / f"base.{format}"
        self.overlay = place.logs / "overlay.qcow2"
        create_image(self.base, format=format, size_bytes=size_bytes)

    @asynccontextmanager
    async def receives(self, source: Monitor, *backups: DiskBackup) -> AsyncIterator[None]:
        """A carrier serves the overlay, and the source is connected to it, inside the block."""
        if not self.overlay.exists():
            create_overlay(self.overlay, base=self.base, base_format=self._format)
        at, here = server(), self._place
        exports = [CarrierExport(each.export, Image(self.overlay, "qcow2")) for each in backups]
        start_carrier(here, exports, server=at, keys=keys(here.run / "keys"))
        try:
            await generations.connect_backups(source, backups, server=at, tls=True)
            yield
            await disks.drop_jobs(source) if await has_yank(source) else await drop_nodes(source)
        finally:
            stop_carrier(here)

    def merge(self) -> bytes:
        run(merge_overlay(self.overlay))
        self.overlay.unlink()
        return self.content()

    def content(self) -> bytes:
        return read(self.base, self._format)


async def has_yank(monitor: Monitor) -> bool:
    return any(each["name"] == "yank" for each in await monitor.execute("query-commands"))


async def drop_nodes(monitor: Monitor) -> None:
    await monitor.execute("blockdev-del", node_name="haulier-virtio0")


def read(path: Path, format: str) -> bytes:
    """What a guest sees."""
    words = ["qemu-img", "dd", "-U", "-f", format, "-O", "raw", f"if={path}", f"of={path}.seen", "bs=1M"]
    subprocess.run(words, check=True, capture_output=True)
    seen = Path(f"{path}.seen")
    try:
        return seen.read_bytes()
    finally:
        seen.unlink()


def backup(format: str, since: str | None = None) -> DiskBackup:
    return DiskBackup("virtio0", "disk", format, "volume1", since)


async def write(source: Monitor, letter: str, at: int, length: int = CLUSTER) -> None:
    line = f'qemu-io -d /machine/peripheral/virtio0/virtio-backend "write -P {ord(letter)} {at} {length}"'
    said = await source.execute_raw("human-monitor-command", {"command-line": line})
    assert "rror" not in said, said


async def bring(source: Monitor, replica: Replica, each: DiskBackup, *, generation: int) -> None:
    async with replica.receives(source, each):
        jobs = await generations.begin_generation(source, [each], bitmap=bitmap_name(REPLICATION, generation))
        await disks.wait_until_done(source, jobs)


async def bitmaps(source: Monitor) -> list[Bitmap]:
    return sorted(await generations.read_bitmaps(source, ["virtio0"]), key=lambda bitmap: bitmap.name)


@asynccontextmanager
async def machine_with_disk(place: VmPlace, format: str, *, size_bytes: int = MIB) -> AsyncIterator[Monitor]:
    async with qemu(place, disk(place, b"", format=format, size_bytes=size_bytes)) as source:
        await stream.ensure_key(source, keys(place.run / "keys"), server=False)
        yield source


@pytest.mark.parametrize("format", FORMATS)
def test_second_generation_brings_only_what_was_written(make_place: Callable[[str], VmPlace], format: str) -> None:
    here, replica = make_place("source"), Replica(make_place("target"), format)
    first = bitmap_name(REPLICATION, 1)

    async def work() -> None:
        async with machine_with_disk(here, format) as source:
            await write(source, "a", 0, 4 * CLUSTER)
            await bring(source, replica, backup(format), generation=1)
            assert await asyncio.to_thread(replica.merge) == b"a" * 4 * CLUSTER + bytes(MIB - 4 * CLUSTER)
            await write(source, "b", 8 * CLUSTER)
            await bring(source, replica, backup(format, since=first), generation=2)
            assert replica.overlay.stat().st_size < 10 * CLUSTER
            after = await asyncio.to_thread(replica.merge)
            assert after == b"a" * 4 * CLUSTER + bytes(4 * CLUSTER) + b"b" * CLUSTER + bytes(7 * CLUSTER)
            # The older one goes on: it is what a generation 2 that was never committed would be made of.
            assert [(each.usable, each.dirty_bytes) for each in await bitmaps(source)] == [(True, CLUSTER), (True, 0)]
            for _ in range(2):
                keep = {bitmap_name(REPLICATION, 2)}
                await generations.drop_bitmaps(source, ["virtio0"], of=REPLICATION, keep=keep)
            assert [each.name for each in await bitmaps(source)] == [bitmap_name(REPLICATION, 2)]
            await generations.drop_bitmaps_of_others(source, ["virtio0"], live=[REPLICATION])
            assert [each.name for each in await bitmaps(source)] == [bitmap_name(REPLICATION, 2)]
            await generations.drop_bitmaps_of_others(source, ["virtio0"], live=[REPLICATION + 1])
            assert await bitmaps(source) == []

    run(work())
    assert replica.base.stat().st_blocks * 512 < 10 * CLUSTER, "holes stay holes"


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_after_the_moment_is_not_in_it(make_place: Callable[[str], VmPlace], format: str) -> None:
    # QEMU sends a MiB before it looks at the speed.
    size, bitmap = 4 * MIB, bitmap_name(REPLICATION, 1)
    here, replica = make_place("source"), Replica(make_place("target"), format, size_bytes=size)

    async def work() -> None:
        async with machine_with_disk(here, format, size_bytes=size) as source:
            await write(source, "a", 0, size)
            each = backup(format)
            async with replica.receives(source, each):
                jobs = await generations.begin_generation(source, [each], bitmap=bitmap, max_bytes_per_s=CLUSTER)
                await write(source, "b", 3 * MIB)
                await source.execute("block-job-set-speed", device=jobs[0], speed=0)
                await disks.wait_until_done(source, jobs)
            (found,) = await bitmaps(source)
            assert found.dirty_bytes == CLUSTER

    run(work())
    assert replica.merge() == b"a" * size


def test_sync_that_came_to_nothing_is_made_up_for(make_place: Callable[[str], VmPlace]) -> None:
    size, first, second = 4 * MIB, bitmap_name(REPLICATION, 1), bitmap_name(REPLICATION, 2)
    here, replica = make_place("source"), Replica(make_place("target"), "qcow2", size_bytes=size)

    async def work() -> None:
        async with machine_with_disk(here, "qcow2", size_bytes=size) as source:
            await write(source, "a", 0, size)
            await bring(source, replica, backup("qcow2"), generation=1)
            await asyncio.to_thread(replica.merge)
            await write(source, "b", 0, 3 * MIB)
            each = backup("qcow2", since=first)
            with pytest.raises(StepFailed, match="backup_failed"):
                async with replica.receives(source, each):
                    jobs = await generations.begin_generation(source, [each], bitmap=second, max_bytes_per_s=CLUSTER)
                    carrier = make_place("target").carrier.pid()
                    assert carrier
                    os.kill(carrier, signal.SIGKILL)
                    with suppress(StepFailed):  # it has seen it already
                        await source.execute("block-job-set-speed", device=jobs[0], speed=0)
                    await disks.wait_until_done(source, jobs)
            await disks.drop_jobs(source)
            await generations.drop_bitmaps(source, ["virtio0"], of=REPLICATION, keep={first})
            assert replica.content() == b"a" * size, "the replica is as it was"
            replica.overlay.unlink()
            await write(source, "c", 3 * MIB, CLUSTER)
            await bring(source, replica, each, generation=2)

    run(work())
    assert replica.merge() == b"b" * 3 * MIB + b"c" * CLUSTER + b"a" * (MIB - CLUSTER)


def test_merge_may_be_killed_and_done_again(make_place: Callable[[str], VmPlace]) -> None:
    """At every moment base and overlay together are the new generation."""
    here, replica = make_place("source"), Replica(make_place("target"), "raw")

    async def work() -> None:
        async with machine_with_disk(here, "raw") as source:
            await write(source, "a", 0, MIB)
            await bring(source, replica, backup("raw"), generation=1)

    run(work())
    # A merge that came half of its way.
    with replica.base.open("r+b") as file:
        file.write(b"a" * (MIB // 2))
    assert read(replica.overlay, "qcow2") == b"a" * MIB
    assert replica.merge() == b"a" * MIB


def test_reader_goes_on_where_the_vm_was_stopped(make_place: Callable[[str], VmPlace]) -> None:
    """The bitmap is in the image; a reader that is killed leaves one that says that it is worth nothing."""
    here, replica = make_place("source"), Replica(make_place("target"), "qcow2")
    first, read_disk = bitmap_name(REPLICATION, 1), ReadDisk("virtio0", Image(here.logs / "disk.qcow2", "qcow2"))

    async def running() -> None:
        async with machine_with_disk(here, "qcow2") as source:
            await write(source, "a", 0, MIB)
            await bring(source, replica, backup("qcow2"), generation=1)
            await write(source, "b", CLUSTER)

    async def stopped() -> None:
        async with open_reader(here, [read_disk], keys=keys(here.run / "keys")) as source:
            assert [(each.usable, each.dirty_bytes) for each in await bitmaps(source)] == [(True, CLUSTER)]
            await bring(source, replica, backup("qcow2", since=first), generation=2)

    async def killed() -> None:
        with pytest.raises(MonitorLost, match="qemu_gone"):
            async with open_reader(here, [read_disk], keys=keys(here.run / "keys")) as source:
                pid = here.reader.pid()
                assert pid
                os.kill(pid, signal.SIGKILL)
                await source.next_event()
        async with open_reader(here, [read_disk], keys=keys(here.run / "keys")) as source:
            assert {each.usable for each in await bitmaps(source)} == {False}
            await generations.drop_bitmaps(source, ["virtio0"], of=REPLICATION)
            assert await bitmaps(source) == []

    run(running())
    machine.stop_now(here)
    replica.merge()
    run(stopped())
    assert here.reader.pid() is None
    assert replica.merge() == b"a" * CLUSTER + b"b" * CLUSTER + b"a" * 14 * CLUSTER
    run(killed())


def test_reader_does_not_open_what_a_qemu_has(make_place: Callable[[str], VmPlace]) -> None:
    here = make_place("source")

    async def work() -> None:
        async with machine_with_disk(here, "qcow2"):
            with pytest.raises(StepFailed, match=r"reader_not_started.*lock"):
                async with open_reader(
                    here, [ReadDisk("virtio0", Image(here.logs / "disk.qcow2", "qcow2"))], keys=None
                ):
                    pass

    run(work())
    assert here.reader.pid() is None
