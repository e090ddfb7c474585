"""The chain of one attempt, step by step: what may be taken, what follows, how it is undone, what a sweep finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from haulier.services import chain, claims
from haulier.services.attempts import note_on_step
from haulier.services.completion import complete_plainly
from haulier.services.context import Context, Message, Unit
from haulier.services.migrations import cancel_migration, file_migration, retry_migration
from models import LIVE_CHAIN, Attempt, Database, Migration, MigrationState, Phase, Side, Step, StepState
from tests.unit.services.world import BROKEN, LEASE_S, UNDOABLE, World, neighbour, outdated

# Every message of an attempt that goes well, in order, and the steps when it is taken and when it is done.
WAY = [
    ("check", "control", "R..........", "dr........."),
    ("check", "node.alpha", "dR.........", "ddr........"),
    ("check", "node.beta", "ddR........", "dddr......."),
    ("reserve", "node.beta", "dddR.......", "ddddr......"),
    ("sync_tpm", "node.alpha", "ddddR......", "dddddr....."),
    ("copy_cold", "node.alpha", "dddddR.....", "ddddddr...."),
    ("open_target", "node.beta", "ddddddR....", "dddddddr..."),
    ("mirror_disks", "node.alpha", "dddddddR...", "dddddddd.r."),
    ("move_memory", "node.alpha", "ddddddddRR.", "dddddddddR."),
    ("hand_over", "node.beta", "dddddddddR.", "ddddddddddr"),
    ("retire_source", "node.alpha", "ddddddddddR", "ddddddddddd"),
]


@pytest.fixture(params=["plainly", "carefully"])
def plain_ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Phase]:
    """Steps end in one of two ways, which must not differ; those that ended plainly."""
    ended: list[Phase] = []

    def complete(unit: Unit, held: claims.Claim, **said: Any) -> bool | None:
        counted = complete_plainly(unit, held, **said) if request.param == "plainly" else None
        if counted:
            ended.append(held.phase)
        return counted

    monkeypatch.setattr(chain, "complete_plainly", complete)
    return ended


# -- forward ----------------------------------------------------------------------------------------------------------


def test_whole_way_step_by_step(world: World, plain_ends: list[Phase], request: pytest.FixtureRequest) -> None:
    world.file()
    seen = []
    standing_by: list[tuple[Message, claims.Claim]] = []
    while world.sent or standing_by:
        message, held = (world.sent[0], world.take()) if world.sent else standing_by.pop()
        if world.picture() == "dddddddd.R.":
            assert chain.stand_by(world.context, held)
            standing_by.append((message, held))
            continue
        taken = world.picture()
        assert world.complete(held)
        seen.append((message.task.removeprefix("haulier."), message.queue, taken, world.picture()))
    assert seen == WAY
    assert len(plain_ends) == (7 if request.node.callspec.params["plain_ends"] == "plainly" else 0)
    assert world.kinds() == ["queued", "running", "handed_over", "done"]
    assert world.state() == "done"
    migration = world.migration()
    assert migration.started_at
    assert migration.finished_at
    assert migration.started_at <= migration.finished_at


@pytest.mark.usefixtures("plain_ends")
def test_end_of_a_step_is_written_down(world: World) -> None:
    world.file()
    held = world.go(Phase.SYNC_TPM)
    note_on_step(world.context, held, early=1)
    assert chain.complete(world.context, held, notes={"late": 2}, marks={"moment": 3.0})
    step, following = world.step(Phase.SYNC_TPM), world.step(Phase.COPY_COLD)
    assert (step.notes, step.marks, step.lease_until) == ({"early": 1, "late": 2}, {"moment": 3.0}, None)
    assert step.finished_at is not None and following.ready_at is not None
    assert step.finished_at <= following.ready_at
    assert world.sent == [Message("haulier.copy_cold", "node.alpha", following.id)]
    assert not chain.complete(world.context, held, notes={"again": 4})
    assert "again" not in world.step(Phase.SYNC_TPM).notes


@pytest.mark.usefixtures("plain_ends")
@pytest.mark.parametrize("meanwhile", [{"cancel_asked": True}, {"needs_operator": True}])
def test_nothing_follows_on_a_step_if_something_is_in_the_way(world: World, meanwhile: dict[str, bool]) -> None:
    world.file()
    held = world.go(Phase.SYNC_TPM)
    world.change(Migration, **meanwhile)
    assert chain.complete(world.context, held, notes={})
    assert world.step(Phase.COPY_COLD).state is StepState.WAITING
    assert world.state() == ("rolling_back" if "cancel_asked" in meanwhile else "running")


def test_message_names_the_row_and_nothing_else(world: World) -> None:
    world.file()
    assert world.sent == [Message("haulier.check", "control", world.step(Phase.CHECK, Side.CONTROL).id)]


def test_doubled_message_finds_nothing(world: World) -> None:
    world.file()
    message = world.sent[0]
    held = world.take()
    assert world.claim(message) is None
    world.complete(held)
    assert world.claim(message) is None
    assert world.picture() == "dr........."


def test_message_about_no_row_finds_nothing(world: World) -> None:
    assert world.claim(Message("haulier.check", "control", 4711)) is None


def test_claim_says_what_is_held(world: World) -> None:
    world.file()
    held = world.go(Phase.RESERVE)
    step = world.step(Phase.RESERVE)
    assert held == claims.Claim(step.id, 1, 1, Phase.RESERVE, Side.TARGET, fence=1, undo=False)
    assert (step.worker, step.started_at is not None, step.lease_until is not None) == ("w", True, True)


def test_notes_and_marks_are_added_to_those_there(world: World) -> None:
    world.file()
    held = world.take()
    world.change(Step, Step.id == held.step_id, notes={"a": 1, "b": 1}, marks={"paused": 1.0})
    chain.complete(world.context, held, notes={"b": 2}, marks={"resumed": 2.0})
    step = world.step(Phase.CHECK, Side.CONTROL)
    assert (step.notes, step.marks) == ({"a": 1, "b": 2}, {"paused": 1.0, "resumed": 2.0})


def test_broker_that_is_away_keeps_nobody_from_anything(world: World) -> None:
    """All other tests rely on it: there is no such socket."""
    socket = Path(world.context.settings.broker.removeprefix("redis+socket://"))
    assert not socket.exists()
    world.file()
    assert world.complete(world.take())


# -- messages and commits ---------------------------------------------------------------------------------------------


def test_messages_are_sent_after_the_commit(world: World) -> None:
    """Whoever gets a message sees, over a connection of its own, the row that it is about."""
    seen: list[tuple[str, StepState, MigrationState]] = []
    other = Database(world.context.settings.database)

    def look(message: Message) -> None:
        with other.read() as session:
            step = session.get_one(Step, message.row)
            seen.append((message.task, step.state, step.attempt.migration.state))
        world.sent.append(message)

    around = Context(world.context.settings, world.context.database, world.context.signals, look)
    watched = World(around, world.sent)
    watched.file()
    watched.fail(watched.go(Phase.SYNC_TPM))
    other.close()
    ready, undo = StepState.READY, StepState.UNDO_READY
    assert [state for _, state, _ in seen] == [ready] * 5 + [undo]
    assert seen[-1] == ("haulier.sync_tpm", undo, MigrationState.ROLLING_BACK)


def test_nothing_is_sent_when_the_transaction_fails(world: World) -> None:
    def fail() -> None:
        with world.context.unit() as unit:
            unit.send(Message("haulier.check", "control", 1))
            unit.note("never")
            raise KeyError("broken")

    with pytest.raises(KeyError):
        fail()
    assert (world.sent, world.kinds("")) == ([], [])


def test_message_that_cannot_be_sent_is_no_error(world: World) -> None:
    """The commit stands, and the sweep sends again."""

    def lose(_: Message) -> None:
        raise OSError("no broker")

    lossy = Context(world.context.settings, world.context.database, world.context.signals, lose)
    with pytest.raises(OSError, match="no broker"):
        file_migration(lossy, "web", target="beta")
    assert world.picture() == "r.........."
    world.let_time_pass()
    world.sweep()
    assert world.complete(world.take())


# -- fences and leases ------------------------------------------------------------------------------------------------


def test_outdated_fence_changes_nothing(world: World) -> None:
    world.file()
    held = outdated(world, world.go(Phase.RESERVE))
    before = (world.picture(), world.state(), world.kinds("step."), list(world.sent))
    assert not chain.complete(world.context, held, notes={"late": True})
    chain.fail(world.context, held, (BROKEN,))
    assert not chain.renew(world.context, held, lease_s=LEASE_S)
    assert (world.picture(), world.state(), world.kinds("step."), list(world.sent)) == before
    assert "late" not in world.step(Phase.RESERVE).notes


def test_outdated_fence_of_an_undo_changes_nothing(world: World) -> None:
    world.file()
    world.fail(world.go(Phase.COPY_COLD))
    stalled = outdated(world, world.take())
    again = world.take()
    assert (stalled.step_id, again.fence) == (again.step_id, stalled.fence + 2)
    chain.complete_undo(world.context, stalled)
    assert world.picture() == "dddddU....."
    chain.fail(world.context, stalled, (BROKEN,))
    assert world.picture() == "dddddU....."
    chain.complete_undo(world.context, again)
    assert world.picture() == "ddddux....."


def test_claim_of_the_run_is_not_a_claim_of_the_undo(world: World) -> None:
    world.file()
    held = world.go(Phase.RESERVE)
    world.fail(held)
    world.take()
    assert not chain.complete(world.context, held, notes={})
    chain.complete_undo(world.context, held)
    assert world.picture() == "dddU......."


def test_renewing_prolongs_the_lease_and_reports(world: World) -> None:
    world.file()
    held = world.take()
    world.let_lease_end(held)
    assert chain.renew(world.context, held, lease_s=LEASE_S, progress={"ram": 1})
    world.sweep()
    assert world.picture() == "R.........."
    assert world.step(Phase.CHECK, Side.CONTROL).progress == {"ram": 1}


def test_undo_is_never_given_up(world: World) -> None:
    world.file()
    world.fail(world.go(Phase.RESERVE))
    assert chain.renew(world.context, world.take(), lease_s=LEASE_S)


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [phase for phase in UNDOABLE if phase is not Phase.MOVE_MEMORY])
def test_failure_is_undone_in_reverse(world: World, phase: Phase) -> None:
    """The failed step first, for nobody knows how far it came, then each that was done; none twice; check never."""
    world.file()
    held = world.go(phase)
    if phase is Phase.HAND_OVER:
        assert chain.stand_by(world.context, held)
        assert world.complete(world.take())
    world.fail(held)
    assert world.state() == "rolling_back"
    assert world.undo_all() == list(reversed(UNDOABLE[: UNDOABLE.index(phase) + 1]))
    assert world.state() == "undone"
    assert world.kinds() == ["queued", "running", "rolling_back", "undone"]
    assert set(world.picture()) <= set("dx."), world.picture()
    assert world.picture().startswith("ddd")
    assert world.migration().problems == [BROKEN.as_dict()]
    assert world.migration().finished_at
    assert (world.vm().node.name, world.vm().epoch) == ("alpha", 0)


def test_failure_of_the_first_check_touches_nothing(world: World) -> None:
    world.file()
    world.fail(world.go(Phase.CHECK, Side.CONTROL))
    assert (world.state(), world.picture(), world.sent) == ("undone", "f..........", [])


@pytest.mark.parametrize(
    ("side", "picture"),
    [(Side.CONTROL, "f.........."), (Side.SOURCE, "df........."), (Side.TARGET, "ddf........")],
)
def test_refusal_in_check_undoes_nothing(world: World, side: Side, picture: str) -> None:
    world.file()
    world.fail(world.go(Phase.CHECK, side), outcome=chain.Outcome.REFUSED)
    assert (world.state(), world.picture(), world.sent) == ("refused", picture, [])
    assert world.kinds() == ["queued", "running", "refused"]
    assert world.migration().problems == [BROKEN.as_dict()]


def test_refusal_after_check_is_undone(world: World) -> None:
    """reserve may find no port: volumes are there by then."""
    world.file()
    world.fail(world.go(Phase.RESERVE), outcome=chain.Outcome.REFUSED)
    assert world.undo_all() == [Phase.RESERVE]
    assert world.state() == "undone"


def test_half_that_was_never_begun_is_not_undone(world: World) -> None:
    """The guest is not paused before the target stands by."""
    world.file()
    world.fail(world.go(Phase.HAND_OVER))
    assert world.undo_all() == [phase for phase in reversed(UNDOABLE) if phase is not Phase.MOVE_MEMORY]
    assert world.picture() == "dddxxxxx.x."


def test_undo_that_fails_is_tried_again(world: World) -> None:
    world.file()
    world.fail(world.go(Phase.COPY_COLD))
    world.fail(world.take())
    assert (world.picture(), world.state(), world.sent) == ("dddddu.....", "rolling_back", [])
    world.let_time_pass()
    world.sweep()
    assert world.undo_all() == [Phase.COPY_COLD, Phase.SYNC_TPM, Phase.RESERVE]
    assert world.state() == "undone"


# -- after the hand-over ----------------------------------------------------------------------------------------------


# -- cancel -----------------------------------------------------------------------------------------------------------


def test_cancel_is_noticed_when_the_lease_is_renewed(world: World) -> None:
    world.file()
    held = world.go(Phase.MIRROR_DISKS)
    cancel_migration(world.context, 1)
    assert world.state() == "running"
    assert not chain.renew(world.context, held, lease_s=LEASE_S)
    assert (world.state(), world.sent) == ("rolling_back", [])
    world.fail(held)
    assert world.undo_all() == list(reversed(UNDOABLE[: UNDOABLE.index(Phase.MIRROR_DISKS) + 1]))
    assert world.kinds() == ["queued", "running", "cancel_asked", "rolling_back", "cancelled"]


def test_cancel_is_noticed_when_a_step_ends(world: World) -> None:
    """Steps shorter than a renewal must not let a cancel slip through."""
    world.file()
    held = world.go(Phase.RESERVE)
    cancel_migration(world.context, 1)
    world.complete(held)
    assert world.undo_all() == [Phase.RESERVE]
    assert world.state() == "cancelled"


def test_cancel_during_check_undoes_nothing(world: World) -> None:
    world.file()
    held = world.go(Phase.CHECK, Side.SOURCE)
    cancel_migration(world.context, 1)
    world.complete(held)
    assert (world.state(), world.sent, world.picture()) == ("cancelled", [], "dd.........")


def test_cancel_between_renewal_and_refusal(world: World) -> None:
    """The worker of check learns of the cancel, and then its own result is a refusal: both end it, neither breaks."""
    world.file()
    held = world.go(Phase.CHECK, Side.SOURCE)
    cancel_migration(world.context, 1)
    assert not chain.renew(world.context, held, lease_s=LEASE_S)
    world.fail(held, outcome=chain.Outcome.REFUSED)
    assert world.state() in ("cancelled", "refused")
    assert "R" not in world.picture()


# -- the sweep --------------------------------------------------------------------------------------------------------


def test_sweep_sends_a_lost_message_again(world: World) -> None:
    world.file()
    lost = world.sent.pop()
    world.sweep()
    assert world.sent == []
    world.let_time_pass()
    world.sweep()
    assert world.sent == [lost]


def test_sweep_leaves_alone_what_is_at_work(world: World) -> None:
    world.file()
    world.take()
    world.let_time_pass()
    world.sweep()
    assert (world.picture(), world.sent) == ("R..........", [])


def test_sweep_undoes_when_a_lease_ends_before_the_hand_over(world: World) -> None:
    world.file()
    held = world.go(Phase.OPEN_TARGET)
    world.let_lease_end(held)
    world.sweep()
    assert world.state() == "rolling_back"
    assert world.undo_all() == list(reversed(UNDOABLE[: UNDOABLE.index(Phase.OPEN_TARGET) + 1]))
    assert world.state() == "undone"
    assert [problem["code"] for problem in world.migration().problems] == ["worker_lost"]
    assert world.kinds("step.") == ["lost"]


def test_sweep_replaces_the_worker_of_an_undo(world: World) -> None:
    world.file()
    world.fail(world.go(Phase.SYNC_TPM))
    world.let_lease_end(world.take())
    world.sweep()
    assert world.undo_all() == [Phase.SYNC_TPM, Phase.RESERVE]
    assert world.state() == "undone"


def test_sweep_checks_again_when_a_check_lost_its_worker(world: World) -> None:
    """Nothing was touched yet; but a check that takes each worker down does not go on doing so."""
    world.file()
    for _ in range(2):
        held = world.take()
        world.let_lease_end(held)
        world.sweep()
        assert (world.state(), world.migration().problems) == ("running", [])
        assert not world.complete(held)
    world.let_lease_end(world.take())
    world.sweep()
    assert (world.state(), world.picture()) == ("undone", "f..........")
    assert [problem["code"] for problem in world.migration().problems] == ["worker_lost"]
    assert world.kinds("step.") == ["lost"] * 3


@pytest.mark.parametrize(("side", "node"), [(Side.SOURCE, "alpha"), (Side.TARGET, "beta")])
def test_silent_node_in_check_is_refused(world: World, side: Side, node: str) -> None:
    world.file()
    for held in iter(world.take, None):
        world.complete(held)
        if world.step(Phase.CHECK, side).state is StepState.READY:
            break
    late = world.sent.pop()
    world.silence(node)
    world.let_time_pass()
    world.sweep()
    assert world.state() == "refused"
    assert [problem["code"] for problem in world.migration().problems] == ["node_silent"]
    assert world.kinds() == ["queued", "running", "refused"]
    assert world.claim(late) is None


def test_silent_node_later_on_is_undone(world: World) -> None:
    """Only what was done is undone: a step that nobody began has no traces."""
    world.file()
    world.complete(world.go(Phase.COPY_COLD))
    world.sent.clear()
    world.silence("beta")
    world.let_time_pass()
    world.sweep()
    assert world.state() == "rolling_back"
    assert world.picture() == "dddddu....."
    world.undo_all()
    assert (world.state(), world.picture()) == ("undone", "dddxxx.....")


def test_sweep_of_nothing(world: World) -> None:
    world.sweep()
    assert (world.sent, world.kinds("")) == ([], [])


# -- an operator ------------------------------------------------------------------------------------------------------


def test_undo_that_needs_an_operator_stops(world: World) -> None:
    """It stops, keeps everything, and goes on backward when it is told to."""
    world.file()
    world.fail(world.go(Phase.COPY_COLD))
    world.fail(world.take(), outcome=chain.Outcome.NEEDS_OPERATOR)
    assert world.shown() == "needs_operator"
    world.let_time_pass()
    world.sweep()
    assert [message for message in world.sent if world.claim(message)] == []
    world.sent.clear()
    retry_migration(world.context, 1)
    world.settle()
    assert (world.shown(), world.picture()) == ("undone", "dddxxx.....")


# -- filing -----------------------------------------------------------------------------------------------------------


def test_attempt_has_the_steps_of_the_table_with_their_queues(world: World) -> None:
    world.file()
    with world.context.database.read() as session:
        steps = session.scalars(select(Step).order_by(Step.position)).all()
    queue = {Side.CONTROL: "control", Side.SOURCE: "node.alpha", Side.TARGET: "node.beta"}
    assert [(step.phase, step.side, step.queue) for step in steps] == [
        (rule.phase, rule.side, queue[rule.side]) for rule in LIVE_CHAIN
    ]


def test_two_migrations_do_not_mix(world: World) -> None:
    world.add_vm("db")
    world.file()
    world.file("db")
    first, second = world.take(), world.take()
    assert (first.migration_id, second.migration_id) == (1, 2)
    world.fail(second)
    world.complete(first)
    assert (world.state(1), world.state(2)) == ("running", "undone")
    assert (world.picture(1), world.picture(2)) == ("dr.........", "f..........")


def test_retry_is_a_migration_of_its_own(world: World) -> None:
    world.file()
    world.fail(world.take())
    again = retry_migration(world.context, 1)
    assert (again, world.state(1), world.state(2)) == (2, "undone", "running")
    assert world.count(Attempt) == 2


def test_other_process_sees_the_same_chain(world: World) -> None:
    world.file()
    with neighbour(world) as other:
        assert other.complete(other.take())
    assert world.picture() == "dr........."
