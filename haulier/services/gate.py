"""The second gate: many are prepared, and few of them move their guests' RAM at once.

Who waits here has its volumes on the target, kept up to date by the mirrors, and a guest that runs undisturbed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.planner.admission import PATIENCE_S, Wish, decide
from haulier.services.context import Context, Unit
from haulier.services.room import ADMISSION, load_room, source_node, target_node
from haulier.services.waiting import make_room
from models import IS_AT_GATE, Attempt, Gate, Migration, MigrationState


def may_pass(unit: Unit, attempt: Attempt) -> bool:
    """Whether the attempt may move its guest's RAM now. One that may not waits from now on for who makes room.

    The caller holds the attempt's row.
    """
    if attempt.moving_at is None:
        attempt.at_gate_since = attempt.at_gate_since or now()
        unit.session.flush()
        unit.context.database.exclude_others(unit.session, ADMISSION)
        if any(wish.id == attempt.id for wish in let_through(unit.context, unit.session)):
            attempt.moving_at = now()
    return attempt.moving_at is not None


def moved(unit: Unit, attempt: Attempt) -> None:
    """The guest's RAM crosses no more, and somebody else's may."""
    if attempt.moving_at is not None and attempt.moved_at is None:
        attempt.moved_at = now()
        unit.session.flush()
        make_room(unit)


def is_at_gate(attempt: Attempt) -> bool:
    """Whether it waits here."""
    return attempt.finished_at is None and attempt.at_gate_since is not None and attempt.moving_at is None


def let_through(context: Context, session: Session) -> list[Wish]:
    """The attempts at the gate that there is room for, in the queue's order."""
    waiting = [wish_at_gate(row) for row in session.execute(at_gate())]
    return decide(waiting, load_room(context, session, Gate.MOVE))[0]


def at_gate() -> Select[*tuple[Any, ...]]:
    """The attempts at the gate, in the queue's order: id, filed_at, at_gate_since, source, target and label."""
    going_on = (
        Migration.state == MigrationState.RUNNING,
        Migration.cancel_asked.is_(False),
        Migration.needs_operator.is_(False),
    )
    return (
        select(
            Attempt.id,
            Attempt.at_gate_since,
            Migration.id.label("migration_id"),
            Migration.created_at.label("filed_at"),
            source_node.name.label("source"),
            target_node.name.label("target"),
            Migration.label,
        )
        .join(Migration, Attempt.migration_id == Migration.id)
        .join(source_node, Migration.source_id == source_node.id)
        .join(target_node, Migration.target_id == target_node.id)
        .where(IS_AT_GATE, *going_on)
        .order_by(Migration.rank, Migration.id)
    )


def wish_at_gate(row: Any) -> Wish:  # noqa: ANN401 - a row of `at_gate`
    """As the planner sees it; its number is the attempt's."""
    overdue = row.at_gate_since < now() - timedelta(seconds=PATIENCE_S)
    return Wish(row.id, row.source, row.target, overdue=overdue)
