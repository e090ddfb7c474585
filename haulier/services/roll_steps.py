"""A roll goes on: what became of the nodes that were out is written down, and those whose turn it is are begun.

Asked at its begin, when an evacuation of one of its nodes has changed its state, and by beat; who dies here has written
all of a step or none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import select

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.services.causes import ROLL, cause_of
from haulier.services.context import Context, Unit
from haulier.services.evacuation_refusals import before_hold
from haulier.services.evacuation_rows import lost_node
from haulier.services.evacuation_wishes import Wishes
from haulier.services.evacuations import evacuate
from haulier.services.group_room import Out, group_full, out_of
from haulier.services.roll_turns import roll_message
from models import Evacuation, EvacuationState, NodeGroupNode, Roll, RollNode, RollNodeState, RollState
from models.transitions import OPEN_ROLL, require_legal

log = structlog.get_logger()
# Who was refused is asked again so much later; to ask means to place all VMs of a node.
_ASK_AGAIN = timedelta(seconds=30)
_N = RollNodeState


def sweep_rolls(context: Context) -> None:
    """Have all rolls that are not over looked at."""
    with context.database.read() as session:
        ids = session.scalars(select(Roll.id).where(Roll.state.in_(OPEN_ROLL)).order_by(Roll.id)).all()
    if ids:
        with context.unit() as unit:
            unit.send(*map(roll_message, ids))


def go_on(context: Context, roll_id: int) -> None:
    """Write down how its nodes stand, and begin the next ones. Safe to call at any time, by many."""
    _follow(context, roll_id)
    while (turn := _next(context, roll_id)) is not None:
        problem = turn.full or _begin(context, turn)
        if problem is not None:
            _note_refusal(context, roll_id, turn, problem)
            # One a look: the others are asked by the next one, which beat has done.
            return


def _follow(context: Context, roll_id: int) -> None:
    """What became of each node, of a roll that is paused too."""
    with context.unit() as unit:
        session = unit.session
        roll = session.get(Roll, roll_id, with_for_update=True, populate_existing=True)
        if roll is None or roll.state not in OPEN_ROLL:
            return
        members = set(session.scalars(select(NodeGroupNode.node_id).where(NodeGroupNode.group_id == roll.group_id)))
        for turn in roll.nodes:
            if turn.state is _N.OUT:
                _look_at_out(unit, roll, turn, members)
            if turn.state is _N.WAITING and (problem := _why_never(roll, turn, members)):
                _leave_out(unit, turn, problem)
        if all(turn.state in (_N.DONE, _N.LEFT_OUT) for turn in roll.nodes):
            move_roll(unit, roll, RollState.DONE)


def _look_at_out(unit: Unit, roll: Roll, turn: RollNode, members: Collection[int]) -> None:
    """What became of its evacuation. One that the end of a window cancels, which is to be restored, goes on."""
    evacuation, node = turn.evacuation, turn.node.name
    if evacuation is None:
        return
    if evacuation.state is EvacuationState.RESTORED and evacuation.drained_at is not None:
        _end_turn(unit, roll, turn, evacuation)
    elif evacuation.state is EvacuationState.RESTORED:
        words = f"{node} was filled again before it was empty (evacuation {evacuation.id})"
        _leave_out(unit, turn, Problem("never_drained", words, f"haulier roll {roll.name}"))
    elif problem := lost_node(turn.node):
        _leave_out(unit, turn, problem)
    elif evacuation.state is EvacuationState.CANCELLED and evacuation.restore_at is None:
        words = f"evacuation {evacuation.id} of {node} was cancelled"
        cancelled = Problem("evacuation_cancelled", words, f"haulier roll resume {roll.id} tries {node} again")
        _move_turn(turn, _N.WAITING)
        turn.problem = cancelled.as_dict()
        # One whose turn does not come any more is left out, and holds nobody up.
        if _why_never(roll, turn, members) is None:
            pause_roll(unit, roll, cancelled)


def _end_turn(unit: Unit, roll: Roll, turn: RollNode, evacuation: Evacuation) -> None:
    """The node is filled again. Where a VM could not come back it may be the node that was spoilt by what was done with
    it: the next ones are not begun before somebody has looked.
    """
    _move_turn(turn, _N.DONE)
    problem = _not_back(roll, turn, evacuation)
    turn.problem = None if problem is None else dict(problem.as_dict())
    unit.note("roll.node_done", node=turn.node.name, roll=roll.id, evacuation=evacuation.id, problem=turn.problem)
    if problem and not _is_late(roll) and any(each.state is _N.WAITING for each in roll.nodes):
        pause_roll(unit, roll, problem)


def _not_back(roll: Roll, turn: RollNode, evacuation: Evacuation) -> Problem | None:
    if (why := evacuation.problem) is None:
        return None
    words = f"not all is back on {turn.node.name}: {why['vm']}: {why['message']}"
    return Problem("not_all_back", words, f"haulier restore {turn.node.name}; haulier roll resume {roll.id} goes on")


def _why_never(roll: Roll, turn: RollNode, members: Collection[int]) -> Problem | None:
    """Why the turn of a node that waits does not come any more."""
    if problem := lost_node(turn.node):
        return problem
    if turn.node_id not in members:
        return Problem("not_in_group", f"{turn.node.name} was taken out of group {roll.name}", "")
    if not _is_late(roll):
        return None
    why = f": {turn.problem['message']}" if turn.problem else ""
    words = f"{turn.node.name} was not begun by {wishes_of(roll).deadline:%Y-%m-%dT%H:%M:%SZ}{why}"
    return Problem("deadline_over", words, f"haulier roll {roll.name}")


def wishes_of(roll: Roll) -> Wishes:
    """How each of its nodes is emptied: so early that it can stay empty before the roll's deadline."""
    return Wishes(
        deadline=before_hold(roll.deadline, roll.hold_s),
        restore_at=roll.restore_at,
        hold_s=roll.hold_s,
        roll_id=roll.id,
        cause=cause_of(ROLL, roll.id),
    )


def _is_late(roll: Roll) -> bool:
    deadline = wishes_of(roll).deadline
    return deadline is not None and deadline <= now()


@dataclass(frozen=True, slots=True)
class _Turn:
    """Whose turn it is; or it would be, but the group is `full` of nodes that are not out by this roll alone."""

    node_id: int
    node: str
    wishes: Wishes
    full: Problem | None = None


def _next(context: Context, roll_id: int) -> _Turn | None:
    """None where nobody can begin, or the roll begins none."""
    with context.database.read() as session:
        roll = session.get(Roll, roll_id)
        if roll is None or roll.group is None or roll.state is not RollState.RUNNING:
            return None
        out, wishes, waiting = out_of(session, roll.group.id), wishes_of(roll), _in_order(roll.nodes)
        for turn in waiting:
            if _is_due(turn, now()) and len(_but(out, turn)) < roll.group.max_at_once:
                return _Turn(turn.node_id, turn.node.name, wishes)
        own = {turn.node_id for turn in roll.nodes if turn.state is _N.OUT}
        for turn in waiting:
            others = _but(out, turn)
            if len(others) >= roll.group.max_at_once and any(each.node_id not in own for each in others):
                return _Turn(turn.node_id, turn.node.name, wishes, group_full(roll.group, others))
    return None


def _but(out: Sequence[Out], turn: RollNode) -> list[Out]:
    return [each for each in out if each.node_id != turn.node_id]


def _in_order(turns: Sequence[RollNode]) -> list[RollNode]:
    """Those whose turn is to come. Who was refused lets the others go first."""
    waiting = [turn for turn in turns if turn.state is _N.WAITING]
    never = datetime.min.replace(tzinfo=UTC)
    return sorted(waiting, key=lambda turn: (turn.asked_at or never, turn.place))


def _is_due(turn: RollNode, moment: datetime) -> bool:
    # One that was refused by a clock which has been put back since is due too.
    return turn.asked_at is None or not timedelta(0) <= moment - turn.asked_at < _ASK_AGAIN


def _begin(context: Context, turn: _Turn) -> Problem | None:
    """Why it was not begun, None if it was: then its turn was written with its evacuation."""
    try:
        evacuate(context, turn.node, turn.wishes)
    except Refused as error:
        return error.problem
    except (ValueError, LookupError) as error:
        # A row that was spoilt: it must hold no other node, and not be asked at each beat.
        log.exception("roll.broken", node=turn.node)
        words = f"{turn.node} cannot be planned: {type(error).__name__}: {error}"
        return Problem("roll_broken", words, "The log of the control worker says where; it is tried again.")
    return None


def _note_refusal(context: Context, roll_id: int, refused: _Turn, problem: Problem) -> None:
    """An event only where the reason is another one than before."""
    with context.unit() as unit:
        roll = unit.session.get_one(Roll, roll_id, with_for_update=True, populate_existing=True)
        turn = unit.session.get_one(RollNode, (roll_id, refused.node_id), populate_existing=True)
        if roll.state is not RollState.RUNNING or turn.state is not _N.WAITING:
            # Somebody else was first.
            return
        if turn.problem is None or turn.problem["code"] != problem.code:
            unit.note("roll.node_refused", node=refused.node, roll=roll_id, problem=problem.as_dict())
            unit.ring(f"roll.{roll_id}")
        turn.problem = problem.as_dict()
        if refused.full is None:
            turn.asked_at = now()


def _move_turn(turn: RollNode, to: RollNodeState) -> None:
    require_legal(turn.state, to)
    turn.state = to


def _leave_out(unit: Unit, turn: RollNode, problem: Problem) -> None:
    _move_turn(turn, _N.LEFT_OUT)
    turn.problem = problem.as_dict()
    unit.note("roll.node_left_out", node=turn.node.name, roll=turn.roll_id, problem=turn.problem)
    unit.ring(f"roll.{turn.roll_id}")


def pause_roll(unit: Unit, roll: Roll, problem: Problem | None) -> None:
    """It begins no more; the caller holds its row. The newest reason is the one that is kept."""
    roll.problem = problem.as_dict() if problem else roll.problem
    move_roll(unit, roll, RollState.PAUSED)


def move_roll(unit: Unit, roll: Roll, to: RollState) -> None:
    """Move it to a state, with an event; the caller holds its row. Nothing happens where it is in that already."""
    if roll.state is to:
        return
    require_legal(roll.state, to)
    roll.state = to
    roll.finished_at = None if to in OPEN_ROLL else now()
    kind = "resumed" if to is RollState.RUNNING else to
    unit.note(f"roll.{kind}", roll=roll.id, group=roll.name, problem=roll.problem)
    unit.ring(f"roll.{roll.id}")
