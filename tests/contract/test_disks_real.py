"""Real mirrors between two QEMUs, and what is left of one that ended early."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from haulier.errors import Refused, StepFailed
from haulier.hypervisor import disks, machine, stream
from haulier.hypervisor.devices import PREFIX
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.monitor import Monitor
from tests.contract.real import (
    OTHER_SECRET,
    disk,
    keys,
    qemu,
    run,
    server,
)

pytestmark = pytest.mark.real


def test_tpmstate_is_neither_mirrored_nor_served_by_a_real_qemu(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place, disk(place, b"data")) as monitor:
            before = await monitor.execute("query-named-block-nodes", flat=True)
            for devices in ([("virtio0", "disk"), ("tpmstate0", "tpmstate")], [("virtio0", "tpmstate")]):
                with pytest.raises(Refused, match="tpmstate_never_mirrored"):
                    await disks.serve_disks(monitor, devices, server=server(), tls=False)
            with pytest.raises(Refused, match="tpmstate_never_mirrored"):
                await disks.start_mirror(monitor, disks.Mirror("tpmstate0", "tpmstate", server(), tls=False))
            assert await monitor.execute("query-block-exports") == []
            assert await monitor.execute("query-block-jobs") == []
            assert await monitor.execute("query-named-block-nodes", flat=True) == before

    run(work())


Pair = tuple[Monitor, Monitor, disks.Mirror]


@asynccontextmanager
async def pair(
    make_place: Callable[[str], VmPlace], content: bytes, *, size_bytes: int = 1 << 20
) -> AsyncIterator[Pair]:
    """A source with a disk, and a target that serves an empty one, with one key."""
    here, there = make_place("source"), make_place("target")
    disks_of = disk(here, content, size_bytes=size_bytes), disk(there, b"", size_bytes=size_bytes)
    async with qemu(here, disks_of[0]) as source, qemu(there, disks_of[1], incoming=True) as target:
        for monitor, place, is_server in ((source, here, False), (target, there, True)):
            await stream.ensure_key(monitor, keys(place.run / "keys"), server=is_server)
        listening = server()
        await disks.serve_disks(target, [("virtio0", "disk")], server=listening, tls=True)
        yield source, target, disks.Mirror("virtio0", "disk", listening, tls=True)


def test_mirror_brings_the_disk_over(make_place: Callable[[str], VmPlace]) -> None:
    content = os.urandom(1 << 16)

    async def work() -> None:
        async with pair(make_place, content) as (source, target, mirror):
            await disks.start_mirror(source, mirror)
            await disks.wait_until_ready(source, [mirror])
            await disks.wait_until_ready(source, [mirror])
            (progress,) = await disks.read_progress(source)
            assert (progress.device, progress.done, progress.total) == ("virtio0", 1 << 20, 1 << 20)
            await disks.finish_mirrors(source, [mirror])
            await disks.stop_serving(target)
            for _ in range(2):
                await disks.drop_jobs(source)
            assert await left_over(source) == []

    run(work())
    (target,) = (make_place("target").logs).glob("disk.raw")
    assert target.read_bytes()[: len(content)] == content
    assert target.stat().st_blocks * 512 < 2 * len(content), "holes stay holes"


async def left_over(monitor: Monitor) -> list[str]:
    nodes = await monitor.execute("query-named-block-nodes", flat=True)
    return [node["node-name"] for node in nodes if node["node-name"].startswith(PREFIX)]


def test_mirror_in_the_middle_is_dropped(make_place: Callable[[str], VmPlace]) -> None:
    async def work() -> None:
        async with pair(make_place, b"data") as (source, _, mirror):
            await disks.start_mirror(source, mirror)
            await disks.drop_jobs(source)
            assert await left_over(source) == []
            assert await monitor_jobs(source) == []
            await disks.start_mirror(source, mirror)
            await disks.wait_until_ready(source, [mirror])
            await disks.drop_jobs(source)

    run(work())


async def monitor_jobs(monitor: Monitor) -> list[Any]:
    jobs: list[Any] = await monitor.execute("query-block-jobs")
    return jobs


def test_speed_is_changed_in_flight(make_place: Callable[[str], VmPlace]) -> None:
    """One that is ready has none: it follows the guest."""

    async def work() -> None:
        # More than QEMU copies at once however slow it is to be: a mebibyte each time that it is told a higher speed.
        async with pair(make_place, os.urandom(32 << 20), size_bytes=32 << 20) as (source, _, mirror):
            await disks.start_mirror(source, mirror, max_bytes_per_s=1 << 10)
            await disks.set_speeds(source, lambda jobs: (1 << 12) // jobs)
            (job,) = await monitor_jobs(source)
            assert (job["speed"], job["ready"]) == (1 << 12, False)
            # At that speed it would take two hours.
            await disks.set_speeds(source, lambda jobs: 1 << 30)
            async with asyncio.timeout(20):
                await disks.wait_until_ready(source, [mirror])
            await disks.set_speeds(source, lambda jobs: 1 << 12)
            (job,) = await monitor_jobs(source)
            assert (job["speed"], job["ready"]) == (0, True)
            await disks.finish_mirrors(source, [mirror])

    run(work())


def test_mirror_whose_target_dies(make_place: Callable[[str], VmPlace]) -> None:
    """The guest's disk goes on; the mirror's end is told, not waited for."""

    async def work() -> None:
        async with pair(make_place, b"data") as (source, _, mirror):
            await disks.start_mirror(source, mirror)
            await disks.wait_until_ready(source, [mirror])
            machine.stop_now(make_place("target"))
            with pytest.raises(StepFailed, match="mirror_failed"):
                await disks.finish_mirrors(source, [mirror])
            await disks.drop_jobs(source)
            assert await left_over(source) == []

    run(work())


def test_mirror_whose_target_does_not_answer_any_more(make_place: Callable[[str], VmPlace]) -> None:
    """Its host's kernel still takes what is sent; a job that is only cancelled waits for the answers for ever."""

    async def work() -> None:
        async with pair(make_place, os.urandom(1 << 20)) as (source, _, mirror):
            await disks.start_mirror(source, mirror, max_bytes_per_s=1 << 18)
            target = make_place("target").qemu.pid()
            assert target
            os.kill(target, signal.SIGSTOP)
            try:
                await source.execute("block-job-set-speed", device=mirror.job, speed=0)
                async with asyncio.timeout(20):
                    await disks.drop_jobs(source)
                assert await left_over(source) == []
                assert await monitor_jobs(source) == []
            finally:
                os.kill(target, signal.SIGCONT)

    run(work())


@pytest.mark.parametrize("secret", [OTHER_SECRET, None], ids=["wrong key", "no key"])
def test_mirror_of_a_stranger_is_refused(make_place: Callable[[str], VmPlace], secret: bytes | None) -> None:
    async def work() -> None:
        async with pair(make_place, b"data") as (source, _, mirror):
            await stream.drop_key(source)
            if secret:
                strangers = keys(make_place("source").run / "other", secret)
                await stream.ensure_key(source, strangers, server=False)
            with pytest.raises(StepFailed, match="qmp_refused"):
                await disks.start_mirror(source, replace(mirror, tls=secret is not None))
            assert await left_over(source) == []

    run(work())


def test_key_is_taken_away_again(place: VmPlace) -> None:
    async def work() -> None:
        async with qemu(place) as monitor:
            for _ in range(2):
                await stream.ensure_key(monitor, keys(place.run / "keys"), server=True)
            for _ in range(2):
                await stream.drop_key(monitor)
            names = {item["name"] for item in await monitor.execute("qom-list", path="/objects")}
        assert not any(name.startswith("haulier") for name in names)

    run(work())
