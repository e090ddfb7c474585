"""The chain of one attempt: which step may be taken, what follows on its end, and how a failed attempt is undone
backwards.

The rows are the truth. A step is taken by compare-and-set under a growing fencing number and held by a lease; its end
is taken only under the same number. Messages are sent after the commit and may be lost, doubled or late: recovery.py
finds the rows that wait.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Problem
from haulier.services.claims import Claim, lock_attempt
from haulier.services.completion import complete_plainly
from haulier.services.context import CONTROL_QUEUE, Context, Unit
from haulier.services.endings import end_failed
from haulier.services.gate import may_pass, moved
from haulier.services.moves import move_migration, remember
from haulier.services.recovery import end_overdue, look_after_partner
from haulier.services.steps import WITH_MIGRATION, advance_undo, finish_if_done, message_for, roll_back
from models import Attempt, Migration, MigrationState, Phase, PhaseRule, Side, Step, StepState, chain_of, may_begin
from models.transitions import GOING_ON

_SWITCH_OVER = (Phase.MOVE_MEMORY, Phase.HAND_OVER)
# `sweep` sends a step that failed after the hand-over again, every `reconcile_s`.
_TRIES_AFTER_HAND_OVER = 24


def start_attempt(unit: Unit, migration: Migration) -> Attempt:
    """Write the steps of a new attempt, the first of them ready, and move the migration to running."""
    move_migration(unit, migration, MigrationState.RUNNING, started_at=migration.started_at or now(), not_before=None)
    migration.problems = []
    number = len(migration.attempts) + 1
    attempt = Attempt(migration_id=migration.id, number=number, target_id=migration.target_id, started_at=now())
    unit.session.add(attempt)
    unit.session.flush()
    queues = {
        Side.CONTROL: CONTROL_QUEUE,
        Side.SOURCE: f"node.{migration.source.name}",
        Side.TARGET: f"node.{migration.target.name}",
    }
    moment = now()
    rows = [
        {
            "attempt_id": attempt.id,
            "position": position,
            "phase": rule.phase,
            "side": rule.side,
            "queue": queues[rule.side],
            "state": StepState.WAITING if rule.after else StepState.READY,
            "ready_at": None if rule.after else moment,
        }
        for position, rule in enumerate(_chain(migration))
    ]
    unit.session.execute(insert(Step), rows)
    for step in attempt.steps:
        if step.state is StepState.READY:
            unit.send(message_for(step))
    return attempt


def _chain(migration: Migration) -> tuple[PhaseRule, ...]:
    return chain_of(offline=migration.offline, sync=migration.replication_id is not None)


def held_step(session: Session, held: Claim, *, undo: bool = False) -> Step | None:
    """The step's row if the claim still counts.

    The attempt's row is locked first: of two steps that end at the same moment, the second must see the first as done,
    or neither would send what follows on both.
    """
    lock_attempt(session.connection(), held.attempt_id)
    step = session.get_one(Step, held.step_id, options=WITH_MIGRATION)
    expected = StepState.UNDOING if undo else StepState.RUNNING
    return step if step.fence == held.fence and step.state is expected else None


def renew(context: Context, held: Claim, *, lease_s: float, progress: dict[str, Any] | None = None) -> bool:
    """Prolong the lease. False if the step is to be given up: the claim was lost, or the migration is being undone."""
    asked = held.partners.moment()
    with context.unit() as unit:
        step = held_step(unit.session, held, undo=held.undo)
        if step is None:
            return False
        moment = now()
        step.lease_s = _lease_s(context, step, lease_s)
        step.lease_until = moment + timedelta(seconds=step.lease_s)
        look_after_partner(unit, step, held.partners, asked=asked)
        end_overdue(unit, step.attempt, moment)
        if progress is not None:
            step.progress = progress
            unit.ring(f"migration.{held.migration_id}")
        migration = step.attempt.migration
        if migration.cancel_asked:
            roll_back(unit, migration, step.attempt)
        return held.undo or migration.state in (MigrationState.RUNNING, MigrationState.HANDED_OVER)


def begin_pause(context: Context, held: Claim, *, paused_at: float) -> None:
    """The guest stands still from now on (seconds since 1970): the leases of both halves of the switch-over are short.

    May be left out or come late; then a guest waits longer for a worker that has died.
    """
    with context.unit() as unit:
        step = held_step(unit.session, held)
        if step is None:
            return
        step.marks = {**step.marks, "paused": paused_at}
        short_s = context.settings.pause_lease_s
        for half in step.attempt.steps:
            if (
                half.state is StepState.RUNNING
                and half.lease_until
                and (half.lease_s is None or half.lease_s > short_s)
            ):
                half.lease_s, half.lease_until = short_s, now() + timedelta(seconds=short_s)


def _lease_s(context: Context, step: Step, usual_s: float) -> float:
    paused = any("paused" in each.marks for each in step.attempt.steps if each.phase is Phase.MOVE_MEMORY)
    return min(usual_s, context.settings.pause_lease_s) if paused and step.phase in _SWITCH_OVER else usual_s


def complete(context: Context, held: Claim, *, notes: dict[str, Any], marks: dict[str, float] | None = None) -> bool:
    """Write down that the step is done and make ready what follows. False if the claim no longer counts."""
    with context.unit() as unit:
        counted = complete_plainly(unit, held, notes=notes, marks=marks or {})
        if counted is not None:
            return counted
        step = held_step(unit.session, held)
        if step is None:
            return False
        finish_step(unit, step, notes=notes, marks=marks)
        return True


def finish_step(unit: Unit, step: Step, *, notes: dict[str, Any], marks: dict[str, float] | None = None) -> None:
    """The same inside a transaction of the caller, who holds the step."""
    step.state, step.finished_at = StepState.DONE, now()
    step.notes = {**step.notes, **notes}
    step.marks = {**step.marks, **(marks or {})}
    step.lease_until = None
    unit.session.flush()
    attempt = step.attempt
    if step.phase is Phase.HAND_OVER:
        moved(unit, attempt)
    unit.ring(f"migration.{attempt.migration_id}")
    if attempt.migration.cancel_asked or attempt.migration.state is MigrationState.ROLLING_BACK:
        roll_back(unit, attempt.migration, attempt)
    if attempt.migration.state not in GOING_ON or attempt.migration.needs_operator:
        return
    release(unit, attempt)
    finish_if_done(unit, attempt)


def stand_by(context: Context, held: Claim) -> bool:
    """Say that the step is at work and waits for its partner, which is made ready by that. Safe to call twice.

    False if the claim no longer counts.
    """
    with context.unit() as unit:
        step = held_step(unit.session, held)
        if step is None:
            return False
        step.notes = {**step.notes, "stands_by": True}
        unit.session.flush()
        migration = step.attempt.migration
        if migration.state is MigrationState.RUNNING and not migration.needs_operator and not migration.cancel_asked:
            release(unit, step.attempt)
        return True


def release(unit: Unit, attempt: Attempt) -> None:
    """Make ready, and send, the waiting steps that have all they need, and are let through where there is a gate."""
    steps = {(step.phase, step.side): step for step in attempt.steps}
    states = {key: step.state for key, step in steps.items()}
    standing_by = {
        key for key, step in steps.items() if step.state is StepState.RUNNING and step.notes.get("stands_by")
    }
    for rule in may_begin(_chain(attempt.migration), states, standing_by):
        if not rule.gate or may_pass(unit, attempt):
            step = steps[rule.phase, rule.side]
            step.state, step.ready_at = StepState.READY, now()
            unit.send(message_for(step))


class Outcome(StrEnum):
    """What a failure means for the migration, as the thrower's class of error says."""

    REFUSED = "refused"
    FAILED = "failed"
    NEEDS_OPERATOR = "needs_operator"


def fail(context: Context, held: Claim, problems: tuple[Problem, ...], *, outcome: Outcome = Outcome.FAILED) -> None:
    """Write down that the step failed, and what becomes of the migration: refused, undone, or kept for an operator.

    A failure after the hand-over never moves the VM back: the step becomes ready again and is tried once more by
    `sweep`. So is an undo that failed.
    """
    with context.unit() as unit:
        step = held_step(unit.session, held, undo=held.undo)
        if step is None:
            return
        migration = step.attempt.migration
        step.problem, step.finished_at, step.lease_until = problems[0].as_dict(), now(), None
        step.state = StepState.UNDO_READY if held.undo else StepState.FAILED
        unit.note(
            "step.failed",
            vm=migration.vm.name,
            migration=migration.id,
            phase=step.phase,
            side=step.side,
            undo=held.undo,
            problem=problems[0].as_dict(),
        )
        unit.ring(f"migration.{migration.id}")
        unit.session.flush()
        if outcome is Outcome.NEEDS_OPERATOR and migration.state is not MigrationState.RUNNING:
            remember(migration, problems)
            migration.needs_operator = True
            unit.note("migration.needs_operator", vm=migration.vm.name, migration=migration.id)
        elif held.undo:
            return
        elif migration.state is MigrationState.HANDED_OVER:
            # Tried again and again, for everybody to see, and after a while only when somebody has looked.
            migration.problems = [problem.as_dict() for problem in problems]
            step.state = StepState.READY
            if step.fence >= _TRIES_AFTER_HAND_OVER and migration.replication_id is not None:
                # The generation is the replica's; what is left to be tidied up, the next sync does first.
                step.state = StepState.DONE
                finish_if_done(unit, step.attempt)
            elif step.fence >= _TRIES_AFTER_HAND_OVER:
                step.state, migration.needs_operator = StepState.FAILED, True
                unit.note("migration.needs_operator", vm=migration.vm.name, migration=migration.id)
        elif outcome is Outcome.REFUSED and step.phase is Phase.CHECK and migration.state is MigrationState.RUNNING:
            remember(migration, problems)
            end_failed(unit, step.attempt, MigrationState.REFUSED)
        else:
            remember(migration, problems)
            roll_back(unit, migration, step.attempt)


def complete_undo(context: Context, held: Claim) -> None:
    """Write down that a step's traces are gone, and go on with the one before it."""
    with context.unit() as unit:
        step = held_step(unit.session, held, undo=True)
        if step is None:
            return
        step.state, step.undone_at, step.lease_until = StepState.UNDONE, now(), None
        if step.phase is Phase.MOVE_MEMORY:
            moved(unit, step.attempt)
        advance_undo(unit, step.attempt)
