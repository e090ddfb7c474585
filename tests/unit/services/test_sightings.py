"""Who is dead is told by what was seen, whatever clocks say: a jump forward, one back, two hosts with two times."""

from __future__ import annotations

from datetime import timedelta

import pytest
from celery.beat import ScheduleEntry

from haulier.clock import now
from haulier.services import chain, claims
from haulier.services.limits import LimitChange, set_limits
from haulier.services.operations import file_operation, take_operation
from haulier.services.put_off import mend_put_off
from haulier.services.sightings import Seen, Sightings
from models import LimitScope, Migration, Node, Operation, OperationKind, Phase, Replication, Side, Step, StepState, Vm
from tasks.beat import SteadyScheduler
from tasks.celery import app
from tests.unit.services.world import LEASE_S, LONG_AGO, Halves, World, between

# Where another clock may stand.
JUMPS = pytest.mark.parametrize("jump", [-LONG_AGO, LONG_AGO], ids=["behind", "ahead"])


def look(sightings: Sightings, kind: str, seen: dict[int, Seen]) -> set[int]:
    return sightings.unchanged(kind, seen, asked=sightings.moment())


def test_what_changes_is_never_over() -> None:
    time = [0.0]
    seen = Sightings(lambda: time[0])
    for value in range(9):
        assert look(seen, "leases", {1: Seen(value, 5.0)}) == set()
        time[0] += 6


def test_what_stays_is_over_after_its_limit() -> None:
    time = [0.0]
    seen = Sightings(lambda: time[0])
    found = []
    for _ in range(4):
        found.append(look(seen, "leases", {1: Seen("x", 4.0), 2: Seen("x", 6.0)}))
        time[0] += 2
    assert found == [set(), set(), {1}, {1, 2}]


def test_who_was_frozen_while_he_looked_has_seen_nothing_meanwhile() -> None:
    time = [0.0]
    seen = Sightings(lambda: time[0])
    assert look(seen, "leases", {1: Seen("x", 4.0)}) == set()
    asked, time[0] = seen.moment(), 100.0
    assert seen.unchanged("leases", {1: Seen("x", 4.0)}, asked=asked) == set()
    assert look(seen, "leases", {1: Seen("x", 4.0)}) == {1}


def test_what_was_away_begins_anew() -> None:
    time = [0.0]
    seen = Sightings(lambda: time[0])
    for picture in ({1: Seen("x", 4.0)}, {}, {1: Seen("x", 4.0)}):
        assert look(seen, "leases", picture) == set()
        time[0] += 4
    assert look(seen, "other", {1: Seen("x", 4.0)}) == set()
    assert look(seen, "leases", {1: Seen("x", 4.0)}) == {1}


@JUMPS
def test_lease_is_over_when_nobody_renews_it(world: World, jump: timedelta) -> None:
    world.file()
    held = world.go(Phase.RESERVE)
    for turn in range(5):
        world.change(Step, Step.id == held.step_id, lease_until=now() + jump + timedelta(seconds=turn))
        world.sweep()
        world.pass_steadily(LEASE_S - 1)
    assert (world.state(), world.step(Phase.RESERVE).state) == ("running", StepState.RUNNING)
    world.pass_steadily(1)
    world.sweep()
    assert (world.state(), world.step(Phase.RESERVE).state) == ("rolling_back", StepState.UNDO_READY)


def test_lease_that_is_renewed_while_it_is_ended_stays(world: World) -> None:
    """Between the look and the lock."""
    world.file()
    held = world.go(Phase.RESERVE)
    world.sweep()
    world.pass_steadily(LEASE_S)
    assert chain.renew(world.context, held, lease_s=LEASE_S)
    world.sweep()
    assert world.step(Phase.RESERVE).state is StepState.RUNNING


@JUMPS
def test_partner_is_dead_when_nobody_renews_its_lease(world: World, halves: Halves, jump: timedelta) -> None:
    move, hand = halves
    time = [0.0]
    alive = claims.Claim(
        hand.step_id, hand.attempt_id, hand.migration_id, hand.phase, hand.side, hand.fence, hand.undo,
        Sightings(lambda: time[0]),
    )  # fmt: skip
    for turn in range(5):
        world.change(Step, Step.id == move.step_id, lease_until=now() + jump + timedelta(seconds=turn))
        assert chain.renew(world.context, alive, lease_s=LEASE_S)
        time[0] += LEASE_S - 1
    time[0] += 1
    assert not chain.renew(world.context, alive, lease_s=LEASE_S)
    assert world.step(Phase.MOVE_MEMORY).state is StepState.FAILED


@JUMPS
def test_node_is_silent_when_it_beats_no_more(world: World, jump: timedelta) -> None:
    world.file()
    world.complete(world.go(Phase.COPY_COLD))
    limit_s = world.context.settings.node_silent_after_s
    for turn in range(5):
        world.change(Node, heartbeat_at=now() + jump + timedelta(seconds=turn))
        world.let_time_pass()
        world.sweep()
        world.pass_steadily(limit_s - 1)
    assert world.state() == "running"
    world.pass_steadily(1)
    world.sweep()
    assert world.state() == "rolling_back"
    told_s = limit_s if jump > timedelta() else 86_396
    assert world.migration().problems[0]["message"] == f"the worker of node beta was last heard of {told_s:.0f} s ago"


def test_message_of_a_time_that_is_yet_to_come_is_sent_again(world: World) -> None:
    world.file()
    lost = world.sent.pop()
    world.sweep()
    assert lost not in world.sent
    world.change(Step, Step.ready_at.is_not(None), ready_at=now() + LONG_AGO)
    world.sweep()
    assert lost in world.sent


def test_operation_is_over_when_nobody_has_ended_it(world: World) -> None:
    with world.context.unit() as unit:
        file_operation(unit, unit.session.get_one(Vm, 1), OperationKind.STOP, grace_s=0)
    assert take_operation(world.context, 1)
    world.change(Operation, lease_until=now() - LONG_AGO)
    for state in ("running", "running", "failed"):
        world.sweep()
        with world.context.database.read() as session:
            assert session.get_one(Operation, 1).state == state
        world.pass_steadily(90)


def test_retry_is_not_put_off_longer_than_any(world: World) -> None:
    at_most_s = world.context.settings.retry_at_most_s
    set_limits(world.context, [LimitChange(LimitScope.CLUSTER, (), 0)])
    world.file()
    assert world.state() == "queued"
    for ahead_s, stays in ((at_most_s * 1.1, True), (at_most_s * 1.3, False)):
        world.change(Migration, not_before=now() + timedelta(seconds=ahead_s))
        mend_put_off(world.context)
        assert (world.migration().not_before is not None) == stays


def test_sync_is_not_put_off_longer_than_any(world: World) -> None:
    with world.context.unit() as unit:
        unit.session.add(Replication(vm_id=1, target_id=2, created_at=now(), every_s=600.0))
    for ahead_s, stays in ((700, True), (740, False)):
        due_at = now() + timedelta(seconds=ahead_s)
        world.change(Replication, due_at=due_at)
        mend_put_off(world.context)
        with world.context.database.read() as session:
            assert (session.get_one(Replication, 1).due_at == due_at) == stays


def test_beat_sends_again_after_its_clock_was_put_back() -> None:
    scheduler = SteadyScheduler(app)
    entry: ScheduleEntry = scheduler.schedule["reconcile"]
    entry.last_run_at = entry.default_now() + LONG_AGO
    due, again_in_s = scheduler.is_due(entry)
    assert (due, round(again_in_s)) == (False, round(app.conf.beat_schedule["reconcile"]["schedule"]))
    entry.last_run_at = entry.default_now() - LONG_AGO
    assert scheduler.is_due(entry).is_due


def test_beat_whose_clock_is_put_back_while_it_looks_sleeps_no_longer_than_usual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = SteadyScheduler(app)
    entry = scheduler.schedule["reconcile"]
    usual_s = app.conf.beat_schedule["reconcile"]["schedule"]
    entry.last_run_at = ahead = entry.default_now() + LONG_AGO
    with monkeypatch.context() as patch:
        patch.setattr(entry, "default_now", lambda: ahead)
        assert scheduler.is_due(entry)[1] > usual_s, "it was put back after the first look of the two"
        assert scheduler.tick() <= usual_s
    assert scheduler.is_due(entry)[1] <= usual_s


def test_control_steps_have_no_node_that_could_be_silent(world: World) -> None:
    world.file()
    world.silence("alpha")
    world.silence("beta")
    world.let_time_pass()
    assert world.step(Phase.CHECK, Side.CONTROL).state is StepState.READY
    world.sweep()
    assert world.state() == "running"


def test_node_that_came_back_in_a_long_sweep_is_silent_no_more(world: World) -> None:
    world.file()
    world.complete(world.go(Phase.COPY_COLD))
    world.let_time_pass()
    world.change(Node, heartbeat_at=now() - LONG_AGO)
    world.sweep()
    world.pass_steadily(world.context.settings.node_silent_after_s)
    with between(world, "SELECT step.id", lambda: world.change(Node, heartbeat_at=now()), parameter="undo_ready"):
        world.sweep()
    assert world.state() == "running"


def test_worker_of_an_older_version_says_no_length(world: World) -> None:
    world.file()
    held = world.go(Phase.RESERVE)
    world.change(Step, Step.id == held.step_id, lease_s=None)
    states = []
    for seconds in (LEASE_S - 1, 1, 0):
        world.sweep()
        states.append(world.state())
        world.pass_steadily(seconds)
    assert states == ["running", "running", "rolling_back"]
