"""Something ended or was allowed: whoever waits for room is looked at."""

from __future__ import annotations

from sqlalchemy import select

from haulier.services.context import CONTROL_QUEUE, Message, Unit
from models import WAITS, Attempt, Migration


def make_room(unit: Unit) -> None:
    """Have those that wait looked at after the commit, if there are any. Beat makes up for a message that is lost."""
    first = unit.session.scalar(select(Migration.id).where(WAITS).limit(1))
    if first is None:
        at_gate = (Attempt.finished_at.is_(None), Attempt.at_gate_since.is_not(None), Attempt.moving_at.is_(None))
        first = unit.session.scalar(select(Attempt.migration_id).where(*at_gate).limit(1))
    if first is None:
        return
    message = Message("haulier.admit", CONTROL_QUEUE, first)
    if message not in unit.messages:
        unit.send(message)
