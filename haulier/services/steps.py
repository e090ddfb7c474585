"""The moves that decide: a migration's state by compare-and-set, and the undo of an attempt, backwards.

Whoever calls something here holds the attempt's row (chain.py and recovery.py lock it), so that two that decide at the
same moment see what the other has done.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Row, select
from sqlalchemy.orm import Session, joinedload

from haulier.clock import now
from haulier.services.claims import lock_attempt_of
from haulier.services.context import Message, Unit
from haulier.services.endings import end_failed
from haulier.services.moves import move_migration
from models import Attempt, Migration, MigrationState, Phase, Side, Step, StepState

# Phases that touched nothing, so that there is nothing to undo.
_WITHOUT_UNDO = (Phase.CHECK,)
# A step is hardly ever looked at without these.
WITH_MIGRATION = (joinedload(Step.attempt, innerjoin=True).joinedload(Attempt.migration, innerjoin=True),)
# What the notes of a step say whose worker was lost: its side's undo is not waited for.
LOST = "lost"


def locked_step(session: Session, step_id: int, *conditions: ColumnElement[bool]) -> Step | None:
    """The step, with its attempt locked, if it is still as it was found."""
    lock_attempt_of(session.connection(), step_id)
    return session.scalar(select(Step).where(Step.id == step_id, *conditions).options(*WITH_MIGRATION))


def message_for(step: Step | Row[*tuple[Any, ...]]) -> Message:
    """The nudge that makes a worker look at this step, an object or a row."""
    return Message(f"haulier.{step.phase}", step.queue, step.id)


def roll_back(unit: Unit, migration: Migration, attempt: Attempt) -> None:
    """Decide that the source keeps the guest. Whoever finds the migration handed over already is too late."""
    if migration.state is MigrationState.RUNNING:
        move_migration(unit, migration, MigrationState.ROLLING_BACK)
    if migration.state is MigrationState.ROLLING_BACK:
        advance_undo(unit, attempt)


def advance_undo(unit: Unit, attempt: Attempt, *, silent: Side | None = None) -> None:
    """Make ready the next step to be undone, in reverse order, once nothing runs any more; at the end close the
    attempt.

    A side whose node is `silent`, or whose worker was lost in this step, is passed by: its undo waits for it, and the
    other side's goes on, because the target cannot win any more and a guest that is paused on the source must not wait
    for a host that may never come back.
    """
    unit.session.flush()
    steps = sorted(attempt.steps, key=lambda step: step.position, reverse=True)
    for step in steps:
        if step.state is StepState.READY or (step.state is StepState.FAILED and step.started_at is None):
            step.state = StepState.WAITING  # nobody ever began it
    if any(step.state in (StepState.RUNNING, StepState.UNDOING) and step.side is not silent for step in steps):
        return
    passed: set[Side] = set()
    for step in steps:
        if step.side in passed:
            continue
        if step.state in (StepState.DONE, StepState.FAILED) and step.phase not in _WITHOUT_UNDO:
            step.state, step.ready_at = StepState.UNDO_READY, now()
            unit.send(message_for(step))
        if step.state in (StepState.RUNNING, StepState.UNDO_READY, StepState.UNDOING):
            if step.side is not silent and not step.notes.get(LOST):
                return
            passed.add(step.side)
    if passed:
        return
    ended = MigrationState.CANCELLED if attempt.migration.cancel_asked else MigrationState.UNDONE
    end_failed(unit, attempt, ended)


def forget_side(unit: Unit, attempt: Attempt, side: Side) -> None:
    """The node of this side is off: nothing that ran there runs any more, and nobody is to undo it.

    An attempt that was handed over is done there; files that it left are found when the node comes back.
    """
    handed_over = attempt.migration.state is MigrationState.HANDED_OVER
    for step in attempt.steps:
        if step.side is side and (handed_over or step.state is not StepState.WAITING):
            step.state = StepState.DONE if handed_over else StepState.UNDONE
            # Whoever comes back and thinks that the step is theirs finds it is not.
            step.fence += 1
            step.lease_until = None
    unit.session.flush()


def finish_if_done(unit: Unit, attempt: Attempt) -> None:
    """Close an attempt of which all steps are done, and its migration with it."""
    if all(each.state is StepState.DONE for each in attempt.steps):
        attempt.finished_at = now()
        attempt.migration.problems = []
        move_migration(unit, attempt.migration, MigrationState.DONE, finished_at=now())
