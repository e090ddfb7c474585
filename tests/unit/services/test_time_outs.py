"""How long a migration may take, and what is done with one that takes longer."""

from __future__ import annotations

from datetime import timedelta

import pytest

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.services import chain
from haulier.services.filing import Terms
from haulier.services.migrations import file_migration, retry_migration
from haulier.settings import LONGEST_S
from models import Attempt, Migration, Phase, StepState
from tests.unit.services.world import LEASE_S, TARGET, Halves, World


def file(world: World, **limits: float) -> Migration:
    return world.migration(
        file_migration(
            world.context,
            "web",
            target=TARGET,
            terms=Terms(timeout_s=limits.get("timeout_s"), stall_s=limits.get("stall_s")),
        )
    )


def let_pass(world: World, *, seconds: float) -> None:
    world.change(Attempt, started_at=now() - timedelta(seconds=seconds))


@pytest.mark.parametrize("limit_s", [-1.0, -0.001, float("inf"), float("nan"), LONGEST_S * 2])
@pytest.mark.parametrize("name", ["timeout_s", "stall_s"])
def test_what_is_no_time_to_wait_is_refused(world: World, name: str, limit_s: float) -> None:
    """An endless one, once filed, would stop every sweep that looks at it."""
    with pytest.raises(Refused, match="bad_time_out"):
        file(world, **{name: limit_s})
    assert world.count(Migration) == 0


def test_limits_are_the_settings_unless_said_otherwise(world: World) -> None:
    world.context.settings.migration_timeout_s, world.context.settings.stall_timeout_s = 30.0, 7.0
    filed = file(world, timeout_s=0.0)
    assert (filed.timeout_s, filed.stall_s) == (0.0, 7.0)
    assert world.view().stall_s == 7.0


def test_longest_time_that_may_be_said_can_be_waited_for(world: World) -> None:
    file(world, timeout_s=LONGEST_S)
    let_pass(world, seconds=1)
    world.sweep()
    assert world.state() == "running"


@pytest.mark.parametrize("who", ["sweep", "renewal"])
def test_migration_that_takes_too_long_is_undone(world: World, who: str) -> None:
    file(world, timeout_s=60.0)
    held = world.go(Phase.RESERVE)
    let_pass(world, seconds=59)
    world.sweep()
    assert chain.renew(world.context, held, lease_s=LEASE_S)
    let_pass(world, seconds=61)
    if who == "sweep":
        world.sweep()
    assert not chain.renew(world.context, held, lease_s=LEASE_S)
    assert [problem["code"] for problem in world.migration().problems] == ["timed_out"]
    world.fail(held)
    assert world.undo_all() == [Phase.RESERVE]
    assert world.state() == "undone"


def test_what_was_handed_over_takes_as_long_as_it_takes(world: World, halves: Halves) -> None:
    world.change(Migration, timeout_s=60.0)
    world.commit(halves[1])
    let_pass(world, seconds=61)
    world.sweep()
    assert (world.state(), world.step(Phase.MOVE_MEMORY).state) == ("handed_over", StepState.RUNNING)


def test_next_try_has_the_same_limits_and_its_own_time(world: World) -> None:
    file(world, timeout_s=60.0, stall_s=5.0)
    held = world.go(Phase.RESERVE)
    let_pass(world, seconds=61)
    world.sweep()
    world.fail(held)
    world.undo_all()
    again = world.migration(retry_migration(world.context, 1))
    assert (again.timeout_s, again.stall_s) == (60.0, 5.0)
    world.sweep()
    assert world.state(again.id) == "running"


def test_what_fails_because_the_time_is_over_is_not_the_reason(world: World) -> None:
    """The target's QEMU ends when the stream is cut, and says so before its step is given up."""
    file(world, timeout_s=3.0)
    held = world.go(Phase.RESERVE)
    let_pass(world, seconds=4.0)
    world.sweep()
    chain.fail(world.context, held, (Problem("target_failed", "it ended", "h"),))
    assert [problem["code"] for problem in world.migration().problems] == ["timed_out", "target_failed"]
