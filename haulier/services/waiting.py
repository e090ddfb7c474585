"""Something ended or was allowed: whoever waits for room is looked at."""

from __future__ import annotations

from sqlalchemy import select

from haulier.services.context import CONTROL_QUEUE, Message, Unit
from models import IS_AT_GATE, WAITS, Attempt, Evacuation, EvacuationState, Migration

_MOVES = (EvacuationState.RUNNING, EvacuationState.BLOCKED, EvacuationState.RESTORING)


def go_on_message(evacuation_id: int) -> Message:
    """Have the control worker look at an evacuation."""
    return Message("haulier.evacuate", CONTROL_QUEUE, evacuation_id)


def tell_evacuations(unit: Unit, node_id: int | None = None) -> None:
    """Have those of a node, or all, looked at that move: something was changed that may have held one of their VMs."""
    own = () if node_id is None else (Evacuation.node_id == node_id,)
    for number in unit.session.scalars(select(Evacuation.id).where(Evacuation.state.in_(_MOVES), *own)):
        unit.send(go_on_message(number))


def make_room(unit: Unit) -> None:
    """Have those that wait looked at after the commit, if there are any. Beat makes up for a message that is lost."""
    first = unit.session.scalar(select(Migration.id).where(WAITS).limit(1))
    if first is None:
        first = unit.session.scalar(select(Attempt.migration_id).where(IS_AT_GATE).limit(1))
    if first is None:
        return
    message = Message("haulier.admit", CONTROL_QUEUE, first)
    if message not in unit.messages:
        unit.send(message)
