"""Rolls as people see them: where each node is, and in one line what all waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.services.context import Context
from haulier.services.evacuation_view import held_until, show_evacuation
from haulier.services.lookup import find_numbered
from models import Evacuation, EvacuationState, Roll, RollNode, RollNodeState, RollState
from models.transitions import OPEN_EVACUATION

_E = EvacuationState
_OUT = {_E.DRAINED: "drained", _E.RESTORING: "restoring", _E.RESTORED: "restored", _E.CANCELLED: "cancelled"}

_OVER = "nothing: it is over"


def find_roll(session: Session, roll_id: int) -> Roll:
    """Raises Refused `unknown_roll`."""
    return find_numbered(session, Roll, roll_id, kind="roll")


def list_rolls(context: Context, *, limit: int = 100) -> list[dict[str, Any]]:
    """The newest rolls, without their nodes."""
    with context.database.read() as session:
        return [_head(roll) for roll in session.scalars(select(Roll).order_by(Roll.id.desc()).limit(limit))]


def show_roll(context: Context, roll_id: int) -> dict[str, Any]:
    """One roll. Raises Refused for an unknown one."""
    with context.database.read() as session:
        roll = find_roll(session, roll_id)
        document = {**_head(roll), "nodes": [_entry(turn) for turn in roll.nodes]}
        out = [turn.evacuation for turn in roll.nodes if turn.state is RollNodeState.OUT and turn.evacuation]
        # The first that goes on by nobody but a person, if there is one.
        first = min(out, key=_need, default=None)
        words = _waits_for(session, roll, out, first)
        shown = (first.id, first.node.name) if first else None
    if words is None and shown is not None:
        words = f"{shown[1]}: {show_evacuation(context, shown[0])['waiting_for']}"
    return {**document, "waiting_for": words}


def _need(evacuation: Evacuation) -> int:
    """Lower for one that a person has to look at."""
    if evacuation.state in (_E.BLOCKED, _E.PAUSED):
        return 0
    return 1 if evacuation.state is _E.DRAINED and evacuation.restore_at is None else 2


def _is_over(evacuation: Evacuation) -> bool:
    """One that the end of a window has cancelled is restored next."""
    return evacuation.state not in OPEN_EVACUATION and evacuation.restore_at is None


def _head(roll: Roll) -> dict[str, Any]:
    return {
        "id": roll.id,
        "group": roll.name,
        "state": roll.state,
        "at_once": roll.group and roll.group.max_at_once,
        "hold_s": roll.hold_s,
        "deadline": roll.deadline and roll.deadline.isoformat(),
        "restore_at": roll.restore_at and roll.restore_at.isoformat(),
        "window": roll.window_id,
        "problem": roll.problem,
        "created_at": roll.created_at.isoformat(),
        "finished_at": roll.finished_at and roll.finished_at.isoformat(),
        "counts": dict(Counter(_state(turn) for turn in roll.nodes)),
    }


def _state(turn: RollNode) -> str:
    """A node that is out by the words of its evacuation."""
    if turn.state is RollNodeState.OUT and turn.evacuation is not None:
        if turn.evacuation.state is _E.CANCELLED and not _is_over(turn.evacuation):
            return "restoring"
        return _OUT.get(turn.evacuation.state, "draining")
    return turn.state


def _entry(turn: RollNode) -> dict[str, Any]:
    is_out = turn.state is RollNodeState.OUT
    return {
        "place": turn.place,
        "node": turn.node.name,
        "state": _state(turn),
        "evacuation": turn.evacuation_id,
        "problem": turn.evacuation.problem if is_out and turn.evacuation else turn.problem,
    }


def _waits_for(session: Session, roll: Roll, out: Sequence[Evacuation], first: Evacuation | None) -> str | None:
    """In one line. None where it is what the evacuation of the `first` node that is out waits for."""
    match roll.state:
        case RollState.DONE:
            return _OVER
        case RollState.CANCELLED:
            own = ", ".join(f"evacuation {each.id} of {each.node.name}" for each in out if not _is_over(each))
            goes_on = "go on by themselves" if ", " in own else "goes on by itself"
            return f"{_OVER}; {own} {goes_on}" if own else _OVER
        case RollState.PAUSED:
            why = f": {roll.problem['message']}" if roll.problem else ""
            return f"it is paused{why}; haulier roll resume {roll.id}"
        case RollState.RUNNING if first is not None and _is_over(first):
            return f"evacuation {first.id} of {first.node.name} is {first.state}, which is written down next"
        case RollState.RUNNING if first is not None:
            return _held(session, first) if first.state is _E.DRAINED else None
    return _next_waits_for(roll)


def _held(session: Session, out: Evacuation) -> str:
    name, until = out.node.name, held_until(session, out)
    if until is None:
        return f"{name} is empty, until somebody calls haulier restore {name}"
    return f"{name} is empty, until {until[1]} or haulier restore {name}"


def _next_waits_for(roll: Roll) -> str:
    waiting = [turn for turn in roll.nodes if turn.state is RollNodeState.WAITING]
    for turn in waiting:
        if turn.problem is not None:
            hint = f" ({turn.problem['hint']})" if turn.problem["hint"] else ""
            return f"{turn.node.name} cannot begin: {turn.problem['message']}{hint}"
    return f"{waiting[0].node.name} is next" if waiting else "nothing: its end is written down next"
