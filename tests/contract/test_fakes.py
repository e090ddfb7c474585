"""What the fakes of haulier/fakes say and do is what real QEMUs say and do: each test is played on both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pytest

from haulier.errors import StepFailed
from haulier.fakes.files import FakeFiles, FakePath
from haulier.fakes.pair import FakePair
from haulier.hypervisor import disks, machine, processes, sockets, stream
from haulier.hypervisor.devices import Drive
from haulier.hypervisor.layout import NodeLayout, VmPlace
from haulier.hypervisor.monitor import Monitor
from haulier.hypervisor.tls import greeting_key
from tests.contract import real
from tests.model.stand_ins import in_place
from tests.model.strands import Clock, Strand

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
KEY = greeting_key(real.SECRET, "1-1")
T = TypeVar("T")


class Hosts(Protocol):
    """Where two QEMUs can run."""

    def place(self, name: str) -> VmPlace: ...

    def run(self, work: Awaitable[T]) -> T: ...


@dataclass
class RealHosts:
    """This one."""

    place: Callable[[str], VmPlace]

    def run(self, work: Awaitable[T]) -> T:
        return real.run(work)


@dataclass
class FakeHosts:
    """Two that are played."""

    pair: FakePair
    clock: Clock

    def place(self, name: str) -> VmPlace:
        layout = NodeLayout(FakePath(f"/{name}/root"), FakePath(f"/{name}/run"))  # type: ignore[arg-type]
        place = layout.vm("vm")
        place.prepare()
        return place

    def run(self, work: Awaitable[T]) -> T:
        """What is asked for comes first, then what QEMUs do by themselves; else time passes."""
        found: list[T] = []
        strand = Strand("test", lambda: found.append(real.run(work)), clock=self.clock, owner=None)
        while not strand.done:
            if strand.can_go_on:
                strand.go_on()
            elif moves := self.pair.moves():
                moves[0].make()
            else:
                self.clock.time += 0.5
        return found[0]


@pytest.fixture(params=["real", "fake"])
def hosts(request: pytest.FixtureRequest, make_place: Callable[[str], VmPlace]) -> Iterator[Hosts]:
    if request.param == "real":
        yield RealHosts(make_place)
        return
    clock, pair = Clock(), FakePair({name: FakeFiles() for name in ("source", "target")})
    pair.use()
    with in_place(clock):
        yield FakeHosts(pair, clock)


@dataclass
class Two:
    """A source whose guest runs, and a target that waits."""

    hosts: Hosts
    source: Monitor
    target: Monitor

    async def begin(self) -> None:
        """The stream begins; both QEMUs have it."""
        to = real.server()
        with sockets.listen_on(to) as listener:
            receiving = asyncio.create_task(stream.receive(self.target, listener, key=KEY))
            await stream.send(self.source, server=to, key=KEY, max_bandwidth_bytes_per_s=0, downtime_limit_ms=300)
            await receiving

    async def reach(self, status: str) -> list[str]:
        """Every status of the source's stream from now until this one; `setup` comes before all of them."""
        seen: list[str] = []
        while seen[-1:] != [status]:
            event = await self.source.next_event()
            if event.name == "MIGRATION" and event.data["status"] != "setup":
                seen.append(event.data["status"])
        return seen

    async def settle(self, source: str, target: str) -> None:
        """Wait until the guest is in these states. QEMU 10 tells that a stream has ended before they follow."""
        await become(self.source, source)
        await become(self.target, target)


async def become(monitor: Monitor, *words: str) -> None:
    """Wait until the guest's state is one of these."""
    async with asyncio.timeout(20):
        while await machine.status(monitor) not in words:  # noqa: ASYNC110 - QEMU tells no event of it
            await asyncio.sleep(0.02)


@asynccontextmanager
async def two(hosts: Hosts, *, disk: bool = False) -> AsyncIterator[Two]:
    here, there = hosts.place("source"), hosts.place("target")
    async with (
        real.qemu(here, *_drives(here, disk)) as source,
        real.qemu(there, *_drives(there, disk), incoming=True) as target,
    ):
        for monitor, place, server in ((source, here, False), (target, there, True)):
            await stream.ensure_key(monitor, real.keys(place.run / "keys"), server=server)
        await machine.resume(source)
        yield Two(hosts, source, target)


def _drives(place: VmPlace, wanted: bool) -> tuple[Drive, ...]:
    return (real.disk(place, b""),) if wanted else ()


async def refused(monitor: Monitor, command: str, **arguments: Any) -> bool:
    """Whether QEMU refuses this command."""
    try:
        await monitor.execute(command, **arguments)
    except StepFailed as error:
        assert error.code == "qmp_refused"
        return True
    return False


def test_stream_that_ends_well(hosts: Hosts) -> None:
    async def work() -> None:
        async with two(hosts) as both:
            await both.settle("running", "inmigrate")
            await both.begin()
            assert await both.reach("pre-switchover") == ["active", "pre-switchover"]
            await both.settle("finish-migrate", "inmigrate")
            await stream.go_on(both.source)
            assert await both.reach("completed") == ["device", "completed"]
            assert (await stream.read_stream(both.target)).status == "completed"
            await both.settle("postmigrate", "paused")
            await machine.resume(both.target)
            await become(both.target, "running")

    hosts.run(work())


def test_stream_that_is_cancelled_in_the_pause(hosts: Hosts) -> None:
    """The guest runs again at once, and nobody is asked."""

    async def work() -> None:
        async with two(hosts) as both:
            await both.begin()
            await both.reach("pre-switchover")
            for _ in range(2):
                await stream.cancel_stream(both.source)
            assert (await stream.read_stream(both.source)).status == "cancelled"
            await become(both.source, "running")

    hosts.run(work())


def test_stream_whose_target_dies_in_the_pause(hosts: Hosts) -> None:
    """Nobody notices as long as nothing is sent."""

    async def work() -> None:
        async with two(hosts) as both:
            await both.begin()
            await both.reach("pre-switchover")
            processes.end(hosts.place("target").qemu)
            await stream.go_on(both.source)
            await both.reach("failed")
            await become(both.source, "running")

    hosts.run(work())


def test_guest_that_was_paused_stays_paused(hosts: Hosts) -> None:
    async def work() -> None:
        async with two(hosts) as both:
            await both.source.execute("stop")
            await both.begin()
            await both.reach("pre-switchover")
            await stream.cancel_stream(both.source)
            # QEMU 7.2 calls it the one, 10.0 the other.
            await become(both.source, "postmigrate", "paused")
            await machine.resume(both.source)
            assert await machine.status(both.source) == "running"

    hosts.run(work())


@pytest.mark.parametrize("ran", [True, False])
def test_guest_is_let_run_as_soon_as_its_stream_has_failed(hosts: Hosts, ran: bool) -> None:
    """QEMU 10 tells the end first, and refuses `cont` for a moment then."""

    async def work() -> None:
        async with two(hosts) as both:
            if not ran:
                await both.source.execute("stop")
            await both.begin()
            await both.reach("pre-switchover")
            processes.end(hosts.place("target").qemu)
            await stream.go_on(both.source)
            await both.reach("failed")
            await machine.resume(both.source)
            assert await machine.status(both.source) == "running"

    hosts.run(work())


def test_target_that_is_told_to_run_too_early_runs_as_soon_as_it_can(hosts: Hosts) -> None:
    async def work() -> None:
        async with two(hosts) as both:
            assert not await refused(both.target, "cont")
            await become(both.target, "inmigrate")
            await both.begin()
            await both.reach("pre-switchover")
            await stream.go_on(both.source)
            await both.reach("completed")
            await both.settle("postmigrate", "running")

    hosts.run(work())


def test_what_is_refused(hosts: Hosts) -> None:
    async def work() -> None:
        async with two(hosts) as both:
            assert await refused(both.source, "migrate-continue", state="pre-switchover")
            assert await refused(both.source, "block-job-cancel", device="haulier-nobody")
            assert await refused(both.source, "nbd-server-stop")
            assert await refused(both.source, "migrate-incoming", uri="fd:none")
            keys = real.keys(hosts.place("source").run / "keys")
            again = dict(keys.as_properties(server=False))
            with pytest.raises(StepFailed, match="qmp_refused"):
                await both.source.execute_raw("object-add", again)
            await both.begin()
            await both.reach("pre-switchover")
            assert await refused(both.source, "migrate", uri="fd:none")
            assert await refused(both.source, "cont")

    hosts.run(work())


@asynccontextmanager
async def mirroring(hosts: Hosts) -> AsyncIterator[tuple[Two, disks.Mirror]]:
    """The source's disk is mirrored into the target's."""
    async with two(hosts, disk=True) as both:
        to = real.server()
        await disks.serve_disks(both.target, [("virtio0", "disk")], server=to, tls=True)
        mirror = disks.Mirror("virtio0", "disk", to, tls=True)
        await disks.start_mirror(both.source, mirror)
        await disks.wait_until_ready(both.source, [mirror])
        yield both, mirror


def test_mirror_ends_well_or_is_dropped(hosts: Hosts) -> None:
    async def work() -> None:
        async with mirroring(hosts) as (both, mirror):
            await disks.finish_mirrors(both.source, [mirror])
            for _ in range(2):
                await disks.drop_jobs(both.source)
            await disks.start_mirror(both.source, mirror)
            await disks.drop_jobs(both.source)
            await disks.stop_serving(both.target)
            with pytest.raises(StepFailed, match="target_unreachable"):
                await disks.start_mirror(both.source, mirror)

    hosts.run(work())


def test_mirror_is_told_its_speed(hosts: Hosts) -> None:
    async def work() -> None:
        async with mirroring(hosts) as (both, mirror):
            await both.source.execute("block-job-set-speed", device=mirror.job, speed=1 << 20)
            await disks.set_speeds(both.source, lambda jobs: 1 << 10)
            assert [job["speed"] for job in await both.source.execute("query-block-jobs")] == [0]
            assert await refused(both.source, "block-job-set-speed", device="none", speed=1)

    hosts.run(work())


def test_mirror_whose_target_dies(hosts: Hosts) -> None:
    async def work() -> None:
        async with mirroring(hosts) as (both, mirror):
            processes.end(hosts.place("target").qemu)
            with pytest.raises(StepFailed, match="mirror_failed"):
                await disks.finish_mirrors(both.source, [mirror])
            await disks.drop_jobs(both.source)

    hosts.run(work())


def test_disks_that_are_served_do_not_keep_a_guest_from_running(hosts: Hosts) -> None:
    """Nothing but the order of our commands does."""

    async def work() -> None:
        async with mirroring(hosts) as (both, mirror):
            await both.begin()
            await both.reach("pre-switchover")
            await disks.finish_mirrors(both.source, [mirror])
            await stream.go_on(both.source)
            await both.reach("completed")
            await machine.resume(both.target)
            await become(both.target, "running")
            await disks.stop_serving(both.target)

    hosts.run(work())


def test_mirror_does_not_outlive_the_yank(hosts: Hosts) -> None:
    async def work() -> None:
        async with mirroring(hosts) as (both, mirror):
            found = await both.source.execute("query-yank")
            assert {"type": "block-node", "node-name": mirror.job} in found
            await both.source.execute("yank", instances=[{"type": "block-node", "node-name": mirror.job}])
            with pytest.raises(StepFailed, match="mirror_failed"):
                await disks.finish_mirrors(both.source, [mirror])

    hosts.run(work())
