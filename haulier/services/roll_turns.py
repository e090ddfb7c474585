"""The place where rolls and evacuations meet: a turn begins with its evacuation, and its end is told to the roll."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.errors import Refused
from haulier.services.context import CONTROL_QUEUE, Message, Unit
from models import Evacuation, Roll, RollNode, RollNodeState, RollState
from models.transitions import OPEN_ROLL, require_legal


def roll_message(roll_id: int) -> Message:
    """Have the control worker look at a roll."""
    return Message("haulier.roll", CONTROL_QUEUE, roll_id)


def tell_rolls(unit: Unit, evacuation: Evacuation) -> None:
    """Its state has changed: the rolls that its node belongs to are looked at. Beat makes up for a lost message."""
    query = (
        select(Roll.id)
        .join(RollNode, RollNode.roll_id == Roll.id)
        .where(RollNode.node_id == evacuation.node_id, Roll.state.in_(OPEN_ROLL))
        .order_by(Roll.id)
    )
    unit.send(*map(roll_message, unit.session.scalars(query)))


def hold_turn(session: Session, roll_id: int, node: int) -> RollNode:
    """The node's turn in a roll, which nobody else begins, pauses or ends before the transaction is over.

    Raises Refused where the roll begins none any more, or the turn is not to come any more.
    """
    roll = session.get_one(Roll, roll_id, with_for_update=True, populate_existing=True)
    turn = session.get_one(RollNode, (roll_id, node), populate_existing=True)
    if roll.state is not RollState.RUNNING or turn.state is not RollNodeState.WAITING:
        words = f"roll {roll_id} is {roll.state}, and the turn of {turn.node.name} is {turn.state}"
        raise Refused("roll_moved_on", words, f"haulier roll show {roll_id}")
    return turn


def begin_turn(unit: Unit, turn: RollNode, evacuation: Evacuation) -> None:
    """The node is out by this evacuation, written in the same transaction: nobody else ends or begins it meanwhile."""
    require_legal(turn.state, RollNodeState.OUT)
    turn.state, turn.evacuation_id, turn.problem = RollNodeState.OUT, evacuation.id, None
    unit.note("roll.node_begun", node=turn.node.name, roll=turn.roll_id, evacuation=evacuation.id)
    unit.ring(f"roll.{turn.roll_id}")
