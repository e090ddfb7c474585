"""Evacuations as people see them: the plan, what became of it, and in one line what it waits for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Subquery, and_, func, or_, select
from sqlalchemy.orm import Session

from haulier.planner.forecast import Span
from haulier.services.alert_duty import closing_alert
from haulier.services.context import Context
from haulier.services.evacuation_plan import Plan
from haulier.services.evacuation_rows import find_evacuation, left_behind, missing, open_evacuation, silent_home
from haulier.services.forecast import end_s, eta_s, spans
from haulier.services.holds import blocked_now, holds_of
from haulier.services.migrations import shown_state
from haulier.services.room import source_node, target_node
from haulier.services.stopped import NOT_STARTED
from models import Batch, Evacuation, EvacuationState, EvacuationVm, Migration, MigrationState, Node, Vm
from models.transitions import AT_WORK, OPEN_MIGRATION

_E = EvacuationState
_HOMEWARD = (_E.RESTORING, _E.RESTORED)


def plan_document(node: Node, plan: Plan, *, but: Collection[str] = ()) -> dict[str, Any]:
    """A plan that was not begun, without those that leave other nodes."""
    moves = [move for move in plan.moves if move.guest not in but]
    blocked = [each for each in plan.blocked if each.guest not in but]
    return {
        "id": None,
        "node": node.name,
        "state": "planned",
        "plan": [
            {"vm": move.guest, "source": node.name, "target": move.target, "reason": move.reason,
             "bytes": plan.bytes[move.guest], "eta_s": plan.ends[move.guest]}
            for move in moves
        ],
        "blocked": [{"vm": each.guest, **each.problem.as_dict()} for each in blocked],
        "counts": {"to_move": len(moves), "blocked": len(blocked)},
        "eta_s": plan.eta_s,
        "loads": [asdict(load) for load in plan.loads],
        "spare": [problem.as_dict() for problem in plan.spare],
        "gap": plan.gap,
        "cut_short": plan.cut_short,
    }  # fmt: skip


def list_evacuations(context: Context, *, limit: int = 100, before: int | None = None) -> list[dict[str, Any]]:
    """The newest evacuations, of those that are older than `before`, without their VMs."""
    wanted = [] if before is None else [Evacuation.id < before]
    query = select(Evacuation, Node.name).join(Node, Node.id == Evacuation.node_id).where(*wanted)
    with context.database.read() as session:
        rows = session.execute(query.order_by(Evacuation.id.desc()).limit(limit)).all()
        counts = _counts(session, [evacuation.id for evacuation, _ in rows])
        return [_head(evacuation, node, counts[evacuation.id]) for evacuation, node in rows]


def show_evacuation(context: Context, evacuation_id: int) -> dict[str, Any]:
    """One evacuation as contract.md shows it: on its way back, the way back. Raises Refused for an unknown one."""
    with context.database.read() as session:
        evacuation = find_evacuation(session, evacuation_id)
        newest = {move.vm_id: move for move in _newest_moves(session, evacuation)}
        own = [move for move in newest.values() if move.state in OPEN_MIGRATION]
        open_ = [*own, *_of_others(session, evacuation, but=[move.id for move in own])]
        left = [] if _is_homeward(evacuation) else [vm.name for vm in left_behind(session, evacuation.node)]
        rows, ends = _rows(session, evacuation), _ends(context, session, open_)
        return {
            **_head(evacuation, evacuation.node.name, _counts(session, [evacuation.id])[evacuation.id]),
            "plan": [_entry(evacuation, row, newest[row.vm_id], ends) for row in rows if row.vm_id in newest],
            "blocked": [
                {"vm": row.vm, "now_on": row.node, **(row.problem or {})} for row in rows if _is_held(evacuation, row)
            ],
            "left": left,
            "eta_s": eta_s([ends.get(move.id) for move in open_]),
            "waiting_for": _stops(evacuation, rows, open_) or _waits_for(context, session, evacuation, open_, left),
        }


def _is_homeward(evacuation: Evacuation) -> bool:
    return evacuation.state in _HOMEWARD


@dataclass(frozen=True, slots=True)
class _Row:
    """A VM of an evacuation, and where it is now."""

    vm_id: int
    vm: str
    node_id: int
    node: str
    reason: str | None
    problem: Mapping[str, Any] | None
    consent_at: datetime | None
    stopped_at: datetime | None


def _rows(session: Session, evacuation: Evacuation) -> list[_Row]:
    query = (
        select(
            *(Vm.id, Vm.name, Node.id, Node.name, EvacuationVm.reason, EvacuationVm.problem),
            *(EvacuationVm.consent_at, EvacuationVm.stopped_at),
        )
        .select_from(EvacuationVm)
        .join(Vm, Vm.id == EvacuationVm.vm_id)
        .join(Node, Node.id == Vm.node_id)
        .where(EvacuationVm.evacuation_id == evacuation.id)
        .order_by(Vm.id)
    )
    return [_Row(*row) for row in session.execute(query)]


def _is_held(evacuation: Evacuation, row: _Row) -> bool:
    """Whether it is still where it is not to be, or not what it was, for a reason."""
    here = row.node_id == evacuation.node_id
    is_over = evacuation.state is _E.CANCELLED
    is_wrong = row.stopped_at is not None or (here is not _is_homeward(evacuation) and not is_over)
    return row.problem is not None and is_wrong


@dataclass(frozen=True, slots=True)
class _Move:
    """A migration, as far as it is shown."""

    id: int
    vm_id: int
    vm: str
    source: str
    target: str
    state: MigrationState
    needs_operator: bool
    rank: float


def _moves(session: Session, *those: ColumnElement[bool]) -> list[_Move]:
    query = (
        select(
            *(Migration.id, Vm.id, Vm.name, source_node.name, target_node.name),
            *(Migration.state, Migration.needs_operator, Migration.rank),
        )
        .select_from(Migration)
        .join(Vm, Vm.id == Migration.vm_id)
        .join(source_node, source_node.id == Migration.source_id)
        .join(target_node, target_node.id == Migration.target_id)
        .where(*those)
        .order_by(Migration.id)
    )
    return [_Move(*row) for row in session.execute(query)]


def _newest(evacuations: Collection[int]) -> Subquery:
    """The newest migration of each VM of these, in the direction that their evacuations go now."""
    return (
        select(Batch.evacuation_id, func.max(Migration.id).label("id"))
        .join(Evacuation, Evacuation.id == Batch.evacuation_id)
        .join(Migration, Migration.batch_id == Batch.id)
        .where(Batch.evacuation_id.in_(evacuations), Batch.homeward == Evacuation.state.in_(_HOMEWARD))
        .group_by(Batch.evacuation_id, Migration.vm_id)
        .subquery()
    )


def _newest_moves(session: Session, evacuation: Evacuation) -> list[_Move]:
    return _moves(session, Migration.id.in_(select(_newest([evacuation.id]).c.id)))


def _counts(session: Session, evacuations: Collection[int]) -> dict[int, Counter[str]]:
    """How many of each one's newest migrations are shown in each state."""
    newest = _newest(evacuations)
    query = (
        select(newest.c.evacuation_id, Migration.state, Migration.needs_operator, func.count())
        .join(newest, newest.c.id == Migration.id)
        .group_by(newest.c.evacuation_id, Migration.state, Migration.needs_operator)
        .order_by(func.min(Migration.id))
    )
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for evacuation_id, state, needs_operator, number in session.execute(query):
        found[evacuation_id][shown_state(state, needs_operator=needs_operator)] += number
    return found


def _of_others(session: Session, evacuation: Evacuation, *, but: Collection[int]) -> list[_Move]:
    """What somebody else has filed of the VMs on its node, or is about to bring there: it is waited for."""
    if _is_homeward(evacuation) or evacuation.state is _E.CANCELLED:
        return []
    leaves = and_(Vm.node_id == evacuation.node_id, Migration.state.in_(OPEN_MIGRATION))
    arrives = and_(Migration.target_id == evacuation.node_id, Migration.state.in_(AT_WORK))
    return _moves(session, or_(leaves, arrives), Migration.replication_id.is_(None), Migration.id.not_in(but))


def _head(evacuation: Evacuation, node: str, counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "id": evacuation.id,
        "node": node,
        "state": evacuation.state,
        "cause": evacuation.cause,
        "created_at": evacuation.created_at.isoformat(),
        "finished_at": evacuation.finished_at and evacuation.finished_at.isoformat(),
        "deadline": evacuation.deadline and evacuation.deadline.isoformat(),
        "restore_at": evacuation.restore_at and evacuation.restore_at.isoformat(),
        "hold_s": evacuation.hold_s,
        "drained_at": evacuation.drained_at and evacuation.drained_at.isoformat(),
        "counts": dict(counts),
    }


def _entry(evacuation: Evacuation, row: _Row, move: _Move, ends: Mapping[int, Span]) -> dict[str, Any]:
    return {
        "vm": row.vm,
        "source": move.source,
        "target": move.target,
        "reason": "it was there before" if _is_homeward(evacuation) else row.reason,
        "migration": move.id,
        "state": shown_state(move.state, needs_operator=move.needs_operator),
        "now_on": row.node,
        "eta_s": end_s(ends.get(move.id)),
    }


def _ends(context: Context, session: Session, open_: Sequence[_Move]) -> Mapping[int, Span]:
    """When those that have not ended will, by their numbers; not of such as are held."""
    return spans(context, session, blocked=blocked_now(session)) if open_ else {}


def _stops(evacuation: Evacuation, rows: Sequence[_Row], open_: Sequence[_Move]) -> str | None:
    """In one line, if nothing moves because something is being stopped or started."""
    for row in rows:
        if row.stopped_at and row.problem and row.problem["code"] == NOT_STARTED:
            return f"{row.vm} is not started: {row.problem['message']} ({row.problem['hint']})"
    if open_:
        return None
    stopping = [row.vm for row in rows if row.stopped_at is not None]
    if stopping:
        return f"{', '.join(stopping)}: stopped for the move, and started again then"
    asked = [row.vm for row in rows if row.consent_at is not None and evacuation.state is not _E.PAUSED]
    return f"{', '.join(asked)}: to be stopped for the move as soon as that would begin" if asked else None


def _waits_for(
    context: Context, session: Session, evacuation: Evacuation, open_: Sequence[_Move], left: Sequence[str]
) -> str:
    """In one line."""
    problem: Mapping[str, str] = evacuation.problem or {}
    name = evacuation.node.name
    match evacuation.state:
        case _E.PAUSED:
            return f"it is paused: haulier evacuation resume {evacuation.id}"
        case _E.BLOCKED:
            return f"{problem.get('vm')} cannot leave: {problem.get('message')} ({problem.get('hint')})"
        case _E.DRAINED:
            empty = f"all that was to leave has left, and {', '.join(left)} is there still" if left else "it is empty"
            until = held_until(session, evacuation)
            by_itself = f"; all is brought back {' '.join(until)}" if until else ""
            return f"nothing: {empty}{by_itself}; haulier restore {name} brings all back{' now' if until else ''}"
        case _E.CANCELLED | _E.RESTORED:
            return _is_over(session, evacuation, open_)
        case _:
            if problem and not open_:
                return f"{problem['vm']}: {problem['message']} ({problem['hint']})"
            away = silent_home(context, evacuation.node) if _is_homeward(evacuation) and not open_ else None
            return f"{away.message} ({away.hint})" if away else _moves_wait_for(context, session, open_)


def _is_over(session: Session, evacuation: Evacuation, open_: Sequence[_Move]) -> str:
    """What was at work when it was given up goes on; what has left is brought back by nobody but who asks for it."""
    if at_work := sum(move.state is not MigrationState.QUEUED for move in open_):
        return f"{_number(at_work, 'move')} at work; it begins no more"
    node = evacuation.node
    away = [] if open_evacuation(session, node) else missing(session, node.id)
    if not away:
        return "nothing: it is over"
    return f"nothing: it is over; {_number(len(away), 'VM')} away from {node.name}: haulier restore {node.name}"


def _number(count: int, word: str) -> str:
    """So many are."""
    return f"{count} {word} is" if count == 1 else f"{count} {word}s are"


def held_until(session: Session, evacuation: Evacuation) -> tuple[str, str] | None:
    """`at` which moment, or `when` what has happened, all is brought back by itself; None if it is not."""
    if evacuation.restore_at is None:
        return None
    if (alert := closing_alert(session, evacuation)) is not None:
        return "when", f"alert {alert.id} is over, which wants {evacuation.node.name} closed"
    return "at", evacuation.restore_at.isoformat(timespec="seconds")


def _moves_wait_for(context: Context, session: Session, open_: Sequence[_Move]) -> str:
    waiting = [move for move in open_ if move.state is MigrationState.QUEUED]
    if stuck := next((move for move in open_ if move.needs_operator), None):
        return f"an operator: haulier migration show {stuck.id}"
    at_work = [f"{_number(len(open_) - len(waiting), 'move')} at work"] if len(open_) > len(waiting) else []
    if not waiting:
        return at_work[0] if at_work else "nothing: what is next is decided next"
    first = min(waiting, key=lambda move: (move.rank, move.id))
    hold = holds_of(context, session, [first.id])[first.id]
    wait = "1 waits" if len(waiting) == 1 else f"{len(waiting)} wait; the first of these"
    return ", ".join([*at_work, f"{wait}, {first.vm}, for: {hold.text}"])
