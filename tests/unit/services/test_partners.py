"""The two halves of the switch-over: who waits for whom, and who notices when one of them is gone."""

from __future__ import annotations

import pytest

from haulier.clock import now
from haulier.services import chain, recovery
from haulier.services.migrations import retry_migration
from models import LIVE_CHAIN, Migration, Phase, Side, Step, StepState, VmState
from tests.unit.services.world import BROKEN, LEASE_S, UNDOABLE, Halves, World, outdated


def test_nobody_stands_by_for_a_migration_that_is_over(world: World) -> None:
    world.file()
    hand = world.go(Phase.HAND_OVER)
    world.change(Migration, cancel_asked=True)
    assert chain.stand_by(world.context, hand)
    assert (world.picture(), world.sent) == ("dddddddd.R.", [])
    world.fail(hand)
    assert not chain.stand_by(world.context, hand)
    assert world.picture() == "dddddddd.u."


def lease_s(world: World, phase: Phase) -> float:
    """How long the lease of a phase lasts from now on."""
    step = world.step(phase)
    assert step.lease_until
    return (step.lease_until - now()).total_seconds()


@pytest.mark.parametrize("older", [False, True], ids=["", "older_version"])
def test_leases_are_short_while_the_guest_is_paused(world: World, halves: Halves, *, older: bool) -> None:
    move, hand = halves
    short = world.context.settings.pause_lease_s
    assert chain.renew(world.context, hand, lease_s=LEASE_S)
    assert min(lease_s(world, Phase.MOVE_MEMORY), lease_s(world, Phase.HAND_OVER)) > short
    if older:
        # A worker of the version before says no length.
        world.change(Step, Step.lease_until.is_not(None), lease_s=None)
    chain.begin_pause(world.context, move, paused_at=12.5)
    assert world.step(Phase.MOVE_MEMORY).marks == {"paused": 12.5}
    assert {world.step(half.phase).lease_s for half in halves} == {short}
    for held in (move, hand):
        assert chain.renew(world.context, held, lease_s=LEASE_S)
    assert max(lease_s(world, Phase.MOVE_MEMORY), lease_s(world, Phase.HAND_OVER)) <= short


def test_pause_of_who_lost_the_step_shortens_nothing(world: World, halves: Halves) -> None:
    move, _ = halves
    world.change(Step, Step.id == move.step_id, fence=7)
    chain.begin_pause(world.context, move, paused_at=12.5)
    assert (world.step(Phase.MOVE_MEMORY).marks, lease_s(world, Phase.HAND_OVER) > 10) == ({}, True)


@pytest.mark.parametrize("dead", [Phase.MOVE_MEMORY, Phase.HAND_OVER])
def test_partner_that_died_is_noticed_without_a_sweep(world: World, halves: Halves, dead: Phase) -> None:
    gone, alive = halves if dead is Phase.MOVE_MEMORY else reversed(halves)
    world.let_lease_end(gone)
    assert not chain.renew(world.context, alive, lease_s=LEASE_S)
    assert (world.state(), world.step(dead).state) == ("rolling_back", StepState.FAILED)
    world.fail(alive)
    world.undo_all()
    assert world.state() == "undone"


def test_partner_that_died_after_the_hand_over_is_called_again(world: World, halves: Halves) -> None:
    move, hand = halves
    world.commit(hand)
    world.let_lease_end(move)
    assert chain.renew(world.context, hand, lease_s=LEASE_S)
    assert (world.state(), world.step(Phase.MOVE_MEMORY).state) == ("handed_over", StepState.READY)
    assert [message.task for message in world.sent] == ["haulier.move_memory"]


def test_new_worker_takes_back_what_the_old_one_had(world: World) -> None:
    """It need not wait for the lease: there is one worker a node."""
    world.file()
    held = world.go(Phase.RESERVE)
    recovery.take_back(world.context, "node.alpha")
    assert world.step(Phase.RESERVE).state is StepState.RUNNING
    recovery.take_back(world.context, "node.beta")
    assert (world.state(), world.picture()) == ("rolling_back", "dddu.......")
    assert not chain.complete(world.context, held, notes={})
    undo = world.take()
    recovery.take_back(world.context, "node.beta")
    assert world.picture() == "dddu......."
    assert not chain.renew(world.context, undo, lease_s=LEASE_S)
    assert world.undo_all() == [Phase.RESERVE]


def test_standing_by_twice_sends_once(world: World) -> None:
    world.file()
    hand = world.go(Phase.HAND_OVER)
    assert chain.stand_by(world.context, hand)
    assert chain.stand_by(world.context, hand)
    assert [message.task for message in world.sent] == ["haulier.move_memory"]


def test_both_halves_of_the_switch_over_may_end_in_either_order(world: World, halves: Halves) -> None:
    move, hand = halves
    assert world.complete(hand)
    assert (world.picture(), world.sent) == ("ddddddddRd.", [])
    assert world.complete(move)
    assert world.picture() == "ddddddddddr"
    assert [message.task for message in world.sent] == ["haulier.retire_source"]


def test_outdated_target_does_not_get_the_guest(world: World, halves: Halves) -> None:
    _, hand = halves
    view = world.view()
    outdated(world, hand)
    assert not world.commit(hand, view)
    assert (world.vm().node.name, world.vm().epoch) == ("alpha", 0)


def test_renewing_says_when_to_give_up(world: World, halves: Halves) -> None:
    move, hand = halves
    assert chain.renew(world.context, hand, lease_s=LEASE_S)
    world.fail(move)
    assert not chain.renew(world.context, hand, lease_s=LEASE_S)


@pytest.mark.parametrize("failed", [Phase.MOVE_MEMORY, Phase.HAND_OVER])
@pytest.mark.parametrize("end", ["completes", "fails"])
def test_failure_waits_for_the_other_half(world: World, halves: Halves, failed: Phase, end: str) -> None:
    """Nothing is undone under a step that still works."""
    move, hand = halves
    first, other = (move, hand) if failed is Phase.MOVE_MEMORY else (hand, move)
    world.fail(first)
    assert world.state() == "rolling_back"
    assert world.sent == []
    if other is hand:
        assert not world.commit(hand)
    if end == "fails" or other is hand:
        world.fail(other)
    else:
        chain.complete(world.context, other, notes={})
    assert world.undo_all() == list(reversed(UNDOABLE))
    assert (world.state(), world.picture()) == ("undone", "dddxxxxxxx.")


def test_failure_after_the_hand_over_is_shown_and_in_the_end_left_to_people(world: World, halves: Halves) -> None:
    move, hand = halves
    world.commit(hand)
    world.complete(move)
    for _ in range(200):
        world.fail(hand)
        assert world.migration().problems == [BROKEN.as_dict()]
        if world.shown() == "needs_operator":
            break
        world.let_time_pass()
        world.sweep()
        hand = world.take()
    assert (world.shown(), world.picture()) == ("needs_operator", "dddddddddf.")
    recovery.take_up_again(world.context, 1)
    hand = world.take()
    assert chain.complete(world.context, hand, notes={})
    world.settle()
    assert (world.state(), world.migration().problems) == ("done", [])


def test_side_that_failed_first_is_told_first(world: World, halves: Halves) -> None:
    """move_memory sees only that the target went away; hand_over brings the target's own words."""
    move, hand = halves
    chain.fail(world.context, move, (type(BROKEN)("stream_failed", "closed", "h"),))
    chain.fail(world.context, hand, (type(BROKEN)("target_failed", "no pc.ram", "h"),))
    assert [problem["code"] for problem in world.migration().problems] == ["target_failed", "stream_failed"]


def test_side_that_gave_up_is_told_first(world: World, halves: Halves) -> None:
    """The target fails because the source stopped sending."""
    move, hand = halves
    chain.fail(world.context, hand, (type(BROKEN)("target_failed", "load failed", "h"),))
    chain.fail(world.context, move, (type(BROKEN)("stalled", "did not move", "h"),))
    assert [problem["code"] for problem in world.migration().problems] == ["stalled", "target_failed"]


def test_step_that_was_given_up_is_no_reason(world: World, halves: Halves) -> None:
    move, hand = halves
    world.fail(move)
    chain.fail(world.context, hand, (type(BROKEN)("given_up", "m", "h"),))
    assert [problem["code"] for problem in world.migration().problems] == ["broken"]


def test_retiring_is_tried_again_and_never_undone(world: World, halves: Halves) -> None:
    for held in halves:
        world.complete(held)
    for _ in range(3):
        world.fail(world.take())
        assert (world.picture(), world.state(), world.sent) == ("ddddddddddr", "handed_over", [])
        world.let_time_pass()
        world.sweep()
    world.complete(world.take())
    assert (world.picture(), world.state()) == ("ddddddddddd", "done")
    assert world.kinds() == ["queued", "running", "handed_over", "done"]
    assert world.migration().problems == []


@pytest.mark.parametrize("phase", [Phase.MOVE_MEMORY, Phase.HAND_OVER])
def test_half_that_fails_after_the_commit_is_tried_again(world: World, halves: Halves, phase: Phase) -> None:
    move, hand = halves
    assert world.commit(hand)
    world.fail(move if phase is Phase.MOVE_MEMORY else hand)
    assert world.state() == "handed_over"
    world.settle()
    assert (world.state(), world.picture()) == ("done", "ddddddddddd")


@pytest.mark.parametrize("lost", [Phase.MOVE_MEMORY, Phase.HAND_OVER, Phase.RETIRE_SOURCE])
def test_worker_lost_after_the_commit_is_replaced(world: World, halves: Halves, lost: Phase) -> None:
    move, hand = halves
    assert world.commit(hand)
    if lost is not Phase.MOVE_MEMORY:
        chain.complete(world.context, move, notes={})
    if lost is not Phase.HAND_OVER:
        chain.complete(world.context, hand, notes={})
    held = {Phase.MOVE_MEMORY: move, Phase.HAND_OVER: hand}.get(lost) or world.take()
    world.let_lease_end(held)
    world.sweep()
    again = world.take()
    assert (again.step_id, again.undo, again.fence) == (held.step_id, False, held.fence + 2)
    assert world.state() == "handed_over"


def test_cancel_after_the_commit_changes_nothing(world: World, halves: Halves) -> None:
    """It was asked for in the moment before the commit, and came too late."""
    move, hand = halves
    view = world.view()
    assert world.commit(hand, view)
    world.change(Migration, Migration.id == 1, cancel_asked=True)
    assert chain.renew(world.context, hand, lease_s=LEASE_S)
    assert chain.complete(world.context, hand, notes={})
    assert chain.complete(world.context, move, notes={})
    world.settle()
    assert world.state() == "done"


def test_sides_that_were_both_lost_undo_without_each_other(world: World, halves: Halves) -> None:
    """Each of them backwards; neither waits for a worker of the other that may not come back."""
    for held in halves:
        world.let_lease_end(held)
    world.sweep()
    undone = world.undo_all()
    assert (world.state(), len(undone)) == ("undone", len(UNDOABLE))
    side = {rule.phase: rule.side for rule in LIVE_CHAIN}
    for one in (Side.SOURCE, Side.TARGET):
        of_one = [phase for phase in undone if side[phase] is one]
        assert of_one == [phase for phase in reversed(UNDOABLE) if side[phase] is one]


def test_silent_node_never_undoes_what_was_handed_over(world: World, halves: Halves) -> None:
    for held in halves:
        world.complete(held)
    world.silence("alpha")
    world.let_time_pass()
    world.sweep()
    assert (world.state(), world.picture()) == ("handed_over", "ddddddddddr")


def test_guest_is_not_kept_waiting_by_a_target_that_died(world: World, halves: Halves) -> None:
    """The source has won: it may let the guest run again before anybody has heard of the target."""
    for held in halves:
        world.fail(held)
    world.sent.clear()
    world.silence("beta")
    undone: list[Phase] = []
    for _ in range(6):
        world.let_time_pass()
        world.sweep()
        for message in [message for message in world.sent if message.queue == "node.alpha"]:
            world.sent.remove(message)
            undo = world.claim(message)
            assert undo is not None
            chain.complete_undo(world.context, undo)
            undone.append(undo.phase)
        world.sent.clear()
    assert undone == [Phase.MOVE_MEMORY, Phase.MIRROR_DISKS, Phase.COPY_COLD, Phase.SYNC_TPM]
    assert (world.state(), world.picture()) == ("rolling_back", "ddddxxdxxu.")
    world.settle()
    assert (world.state(), world.picture()) == ("undone", "dddxxxxxxx.")


def test_operator_takes_a_retirement_up_again(world: World, halves: Halves) -> None:
    for held in halves:
        world.complete(held)
    world.fail(world.take(), outcome=chain.Outcome.NEEDS_OPERATOR)
    assert (world.shown(), world.sent) == ("needs_operator", [])
    world.let_time_pass()
    world.sweep()
    assert world.sent == []
    assert retry_migration(world.context, 1) == 1
    world.complete(world.take())
    assert world.shown() == "done"
    assert world.kinds() == ["queued", "running", "handed_over", "needs_operator", "taken_up_again", "done"]


def test_second_half_that_needs_an_operator_too(world: World, halves: Halves) -> None:
    move, hand = halves
    assert world.commit(hand)
    world.fail(move, outcome=chain.Outcome.NEEDS_OPERATOR)
    world.fail(hand, outcome=chain.Outcome.NEEDS_OPERATOR)
    assert (world.shown(), world.picture()) == ("needs_operator", "ddddddddff.")
    retry_migration(world.context, 1)
    world.settle()
    assert world.shown() == "done"


@pytest.mark.parametrize("first", [Phase.MOVE_MEMORY, Phase.HAND_OVER])
def test_other_half_ends_while_an_operator_is_needed(world: World, halves: Halves, first: Phase) -> None:
    move, hand = halves
    assert world.commit(hand)
    failed, other = (move, hand) if first is Phase.MOVE_MEMORY else (hand, move)
    world.fail(failed, outcome=chain.Outcome.NEEDS_OPERATOR)
    chain.complete(world.context, other, notes={})
    assert world.shown() == "needs_operator"
    assert world.sent == []
    retry_migration(world.context, 1)
    world.settle()
    assert world.shown() == "done"


def test_vm_is_paused_between_commit_and_resume(world: World, halves: Halves) -> None:
    _, hand = halves
    world.commit(hand)
    assert world.vm().state is VmState.PAUSED
