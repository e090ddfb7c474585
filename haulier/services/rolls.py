"""Rolls as people ask for them: planned, begun, paused, resumed, cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.services.context import Context, Unit
from haulier.services.evacuation_refusals import before_hold, deadline_over, require_hold
from haulier.services.evacuation_wishes import Wishes
from haulier.services.evacuations import plan_evacuation
from haulier.services.groups import find_group, open_roll_id
from haulier.services.roll_steps import go_on, move_roll, pause_roll
from haulier.services.roll_turns import roll_message
from haulier.services.roll_view import find_roll, show_roll
from models import NodeGroup, Roll, RollNode, RollState
from models.transitions import OPEN_ROLL


@dataclass(frozen=True, slots=True)
class RollWishes:
    """How a group is rolled through: each node stays empty for `hold_s`, or until somebody brings its VMs back. What
    cannot be emptied and stay so by the `deadline` is left out. At `restore_at` all is brought back. `window_id`: it is
    the window that asks.
    """

    hold_s: float | None = None
    deadline: datetime | None = None
    restore_at: datetime | None = None
    window_id: int | None = None


USUAL_WISHES = RollWishes()


def plan_roll(context: Context, name: str, wishes: RollWishes = USUAL_WISHES) -> dict[str, Any]:
    """The nodes in their order, and what would be done with each as things are now. Touches nothing. Raises Refused for
    an unknown group, and for times that cannot be.
    """
    _require_sense(wishes)
    with context.database.read() as session:
        group = find_group(session, name)
        nodes = [node.name for node in group.nodes]
        head = {"group": name, "at_once": group.max_at_once, "roll": open_roll_id(session, group)}
    of_each = Wishes(deadline=before_hold(wishes.deadline, wishes.hold_s), hold_s=wishes.hold_s)
    planned = [{"place": place, **_plan_node(context, node, of_each)} for place, node in enumerate(nodes, start=1)]
    return {"id": None, "state": "planned", **head, "hold_s": wishes.hold_s, "nodes": planned}


def _plan_node(context: Context, name: str, wishes: Wishes) -> dict[str, Any]:
    try:
        plan = plan_evacuation(context, name, wishes)
    except Refused as error:
        nothing: dict[str, Any] = {"plan": [], "blocked": [], "refusals": [], "eta_s": None}
        return {"node": name, "state": "left_out", "problem": error.problem.as_dict(), **nothing}
    kept = {key: plan[key] for key in ("plan", "blocked", "refusals", "eta_s")}
    return {"node": name, "state": "waiting", "problem": None, **kept}


def _require_sense(wishes: RollWishes) -> None:
    require_hold(wishes.hold_s)
    if wishes.deadline is None:
        return
    left_s = (wishes.deadline - now()).total_seconds()
    if left_s <= 0:
        raise Refused.because((deadline_over(wishes.deadline),))
    if (wishes.hold_s or 0) >= left_s:
        words = f"each node is to stay empty for {wishes.hold_s:g} s, and there are {left_s:.0f} s until the deadline"
        raise Refused("deadline_too_near", words, "A later one, or a shorter --hold.")


def begin_roll(context: Context, name: str, wishes: RollWishes = USUAL_WISHES) -> dict[str, Any]:
    """Begin to roll through a group, or go on with the roll that it has. Raises Refused for an unknown group, for times
    that cannot be, and for a window where another roll is open; nothing was changed then.
    """
    roll_id, again = _file(context, name, wishes)
    go_on(context, roll_id)
    return {**show_roll(context, roll_id), "again": again}


def _file(context: Context, name: str, wishes: RollWishes) -> tuple[int, bool]:
    """The group's roll, and whether it was there already."""
    with context.unit() as unit:
        group = find_group(unit.session, name, lock=True)
        there = _there(unit.session, group, wishes)
        if there is not None:
            unit.send(roll_message(there))
            return there, True
        _require_sense(wishes)
        roll = Roll(
            group_id=group.id,
            name=name,
            state=RollState.RUNNING,
            hold_s=wishes.hold_s,
            deadline=wishes.deadline,
            restore_at=wishes.restore_at,
            window_id=wishes.window_id,
            created_at=now(),
        )
        roll.nodes = [RollNode(node_id=node.id, place=place) for place, node in enumerate(group.nodes, start=1)]
        unit.session.add(roll)
        unit.session.flush()
        nodes = [node.name for node in group.nodes]
        unit.note("roll.begun", roll=roll.id, group=name, nodes=nodes, window=wishes.window_id)
        unit.send(roll_message(roll.id))
        return roll.id, False


def _there(session: Session, group: NodeGroup, wishes: RollWishes) -> int | None:
    """The roll that is meant. A window begins one of its own each time; asked twice for one time it is the same, also
    when it is over.
    """
    if wishes.window_id is None:
        return open_roll_id(session, group)
    own = (Roll.group_id == group.id, Roll.window_id == wishes.window_id, Roll.deadline == wishes.deadline)
    if (same := session.scalar(select(Roll.id).where(*own))) is not None:
        return same
    if (other := open_roll_id(session, group)) is not None:
        raise Refused("roll_open", f"roll {other} of group {group.name} is not over", f"haulier roll show {other}")
    return None


def pause(context: Context, roll_id: int) -> dict[str, Any]:
    """Begin no more of its nodes; those that are out go on. Raises Refused for one that is over."""

    def change(unit: Unit, roll: Roll) -> None:
        pause_roll(unit, roll, None)

    return _change(context, roll_id, change)


def resume(context: Context, roll_id: int) -> dict[str, Any]:
    """Let it go on; what was refused or cancelled is tried again now. Raises Refused for one that is over."""

    def change(unit: Unit, roll: Roll) -> None:
        roll.problem = None
        unit.session.execute(update(RollNode).where(RollNode.roll_id == roll.id).values(asked_at=None))
        move_roll(unit, roll, RollState.RUNNING)
        unit.send(roll_message(roll.id))

    _change(context, roll_id, change)
    go_on(context, roll_id)
    return show_roll(context, roll_id)


def cancel(context: Context, roll_id: int) -> dict[str, Any]:
    """Begin no more of its nodes, for good; those that are out go on as evacuations of their own. Raises Refused for
    one that is over.
    """

    def change(unit: Unit, roll: Roll) -> None:
        move_roll(unit, roll, RollState.CANCELLED)

    return _change(context, roll_id, change)


def _change(context: Context, roll_id: int, change: Callable[[Unit, Roll], None]) -> dict[str, Any]:
    with context.unit() as unit:
        find_roll(unit.session, roll_id)
        roll = unit.session.get_one(Roll, roll_id, with_for_update=True, populate_existing=True)
        if roll.state not in OPEN_ROLL:
            raise Refused.because((_over(roll),))
        change(unit, roll)
    return show_roll(context, roll_id)


def _over(roll: Roll) -> Problem:
    return Problem("roll_over", f"roll {roll.id} is {roll.state}", f"haulier roll show {roll.id}")
