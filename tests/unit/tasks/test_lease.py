"""Who keeps a lease gives a phase up when it was told to, or when the phase does not move."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from haulier.errors import StepFailed
from haulier.services.bandwidth import take_share
from haulier.services.claims import Claim
from models import Migration, Phase, StepState
from tasks import lease as module
from tasks.bandwidth import Allowance
from tasks.lease import Lease
from tests.unit.services.world import World

# A lease is looked at three times in its length, by the loop's own clock; all that counts is counted by the clock here.
LEASE_S, STALL_S = 0.15, 0.1


@dataclass
class Clock:
    """Stands still unless it is moved; says when somebody has looked at it."""

    now: float = 0.0
    looked: asyncio.Event = field(default_factory=asyncio.Event)

    def monotonic(self) -> float:
        self.looked.set()
        return self.now

    async def move(self, seconds: float) -> None:
        """Let time pass, once the keeper has begun, and let it see that: it may be in the middle of a look."""
        await self.looked.wait()
        self.now += seconds
        for _ in range(2):
            self.looked.clear()
            await self.looked.wait()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, world: World) -> Clock:
    settings = world.context.settings
    settings.lease_s, settings.pause_lease_s = LEASE_S, STALL_S
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def lease(world: World, held: Claim, *, stall_s: float = STALL_S, **marks: float) -> Lease:
    return Lease(world.context, held, Allowance(world.context, held), {}, dict(marks), stall_s)


async def forever() -> None:
    await asyncio.Event().wait()


def end_of(it: Lease, clock: Clock) -> str:
    """The code of the error after the phase has stood still for longer than it may."""

    async def stand_still() -> None:
        await clock.move(STALL_S * 1.1)
        await forever()

    with pytest.raises(StepFailed) as caught:
        asyncio.run(it.hold_for(stand_still()))
    return caught.value.code


def test_phase_that_carries_and_does_not_move_has_stalled(world: World, clock: Clock) -> None:
    world.file()
    assert end_of(lease(world, world.go(Phase.MIRROR_DISKS)), clock) == "stalled"
    assert world.step(Phase.MIRROR_DISKS).state is StepState.RUNNING, "what becomes of it is the runner's to say"


def test_phase_that_moves_goes_on(world: World, clock: Clock) -> None:
    world.file()
    it = lease(world, world.go(Phase.MIRROR_DISKS))

    async def crawl(progress: dict[str, Any]) -> str:
        for n in range(5):
            progress["scsi0"] = {"bytes": n}
            await clock.move(STALL_S * 0.9)
        return "arrived"

    assert asyncio.run(it.hold_for(crawl(it.progress))) == "arrived"


def test_one_that_waits_for_its_share_has_not_stalled(world: World, clock: Clock) -> None:
    """Nothing is carried until the other has given."""
    world.context.settings.bandwidth_out_bytes_per_s = 2 << 20
    world.file()
    other = world.go(Phase.MIRROR_DISKS)
    assert take_share(world.context, other, using=0) == 2 << 20
    world.add_vm("db")
    world.sent.clear()
    world.file("db")
    it = lease(world, world.go(Phase.MIRROR_DISKS))

    async def begin() -> tuple[int, int]:
        pace = asyncio.create_task(it.allowance.pace())
        for _ in range(3):
            await clock.move(STALL_S * 1.1)
        assert it.allowance.waits
        take_share(world.context, other, using=2 << 20)
        take_share(world.context, other, using=1 << 20)
        return await pace, await it.allowance.pace(jobs=4)

    assert asyncio.run(it.hold_for(begin())) == (1 << 20, 1 << 18)


def test_one_that_does_something_else_has_stalled_whatever_its_share(world: World, clock: Clock) -> None:
    world.file()
    it = lease(world, world.go(Phase.MIRROR_DISKS))
    it.allowance.share = 0
    assert end_of(it, clock) == "stalled"


def test_low_limit_is_no_stall(world: World, clock: Clock) -> None:
    """A mirror sends sixteen MiB at once, and then nothing for as long as its limit says."""
    world.context.settings.bandwidth_out_bytes_per_s = 1 << 20
    world.file()
    it = lease(world, world.go(Phase.MIRROR_DISKS))

    async def send_slowly() -> str:
        assert await it.allowance.pace(jobs=8) == 1 << 17
        await clock.move(STALL_S * 1.1)
        return "sent"

    assert asyncio.run(it.hold_for(send_slowly())) == "sent"


def test_usual_limit_of_a_job_holds_beside_the_share(world: World) -> None:
    world.context.settings.max_bandwidth_bytes_per_s = 100 << 10
    world.file()
    it = lease(world, world.go(Phase.MIRROR_DISKS)).allowance
    for share, jobs, each in ((None, 2, 100), (1000, 2, 100), (100, 2, 50), (1, 4, 1)):
        it.share = share and share << 10
        assert it.of_each(jobs) == each << 10
    it.has_told(4)
    assert it.using == 4 << 10


def test_in_the_pause_patience_is_short_whatever_was_asked_for(world: World, clock: Clock) -> None:
    world.file()
    move = world.go(Phase.MOVE_MEMORY)
    assert end_of(lease(world, move, stall_s=0.0, paused=12.5), clock) == "stalled"


@pytest.mark.parametrize(("phase", "stall_s"), [(Phase.RESERVE, STALL_S), (Phase.HAND_OVER, STALL_S),
                                                (Phase.MIRROR_DISKS, 0.0)])  # fmt: skip
def test_phase_that_may_take_its_time_is_only_given_up_when_told(
    world: World, clock: Clock, phase: Phase, stall_s: float
) -> None:
    world.file()
    it = lease(world, world.go(phase), stall_s=stall_s)

    async def be_cancelled_late() -> None:
        for _ in range(5):
            await clock.move(STALL_S)
        world.change(Migration, cancel_asked=True)
        await forever()

    with pytest.raises(StepFailed, match="given_up"):
        asyncio.run(it.hold_for(be_cancelled_late()))


def test_undo_is_never_given_up_for_being_slow(world: World, clock: Clock) -> None:
    world.file()
    world.fail(world.go(Phase.MIRROR_DISKS))
    undo = world.take()
    assert (undo.undo, undo.phase) == (True, Phase.MIRROR_DISKS)

    async def take_long() -> str:
        for _ in range(5):
            await clock.move(STALL_S)
        return "undone"

    assert asyncio.run(lease(world, undo).hold_for(take_long())) == "undone"


def test_error_of_the_work_is_the_one_that_is_raised(world: World, clock: Clock) -> None:
    world.file()

    async def break_down() -> None:
        raise StepFailed("broken", "it broke", "Mend it.")

    with pytest.raises(StepFailed, match="broken"):
        asyncio.run(lease(world, world.go(Phase.RESERVE)).hold_for(break_down()))
