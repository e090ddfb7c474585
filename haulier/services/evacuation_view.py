"""Evacuations as people see them: the plan, what became of it, and in one line what it waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.services.context import Context
from haulier.services.evacuation_plan import Plan
from haulier.services.evacuation_rows import find_evacuation, left_behind
from haulier.services.forecast import eta_s, spans
from haulier.services.holds import blocked_now, holds_of
from haulier.services.migrations import shown_state
from models import Batch, Evacuation, EvacuationState, EvacuationVm, Migration, MigrationState, Node, Vm
from models.transitions import OPEN_MIGRATION

_E = EvacuationState


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
             "bytes": plan.bytes[move.guest]}
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
    with context.database.read() as session:
        rows = session.scalars(select(Evacuation).where(*wanted).order_by(Evacuation.id.desc()).limit(limit)).all()
        return [_head(evacuation, _newest(session, evacuation)) for evacuation in rows]


def show_evacuation(context: Context, evacuation_id: int) -> dict[str, Any]:
    """One evacuation as contract.md shows it: on its way back, the way back. Raises Refused for an unknown one."""
    with context.database.read() as session:
        evacuation = find_evacuation(session, evacuation_id)
        newest = _newest(session, evacuation)
        own = [migration for migration in newest.values() if migration.state in OPEN_MIGRATION]
        open_ = [*own, *_of_others(session, evacuation, but=[migration.id for migration in own])]
        left = [] if _is_homeward(evacuation) else [vm.name for vm in left_behind(session, evacuation.node)]
        return {
            **_head(evacuation, newest),
            "plan": [_entry(evacuation, row, newest[row.vm_id]) for row in evacuation.vms if row.vm_id in newest],
            "blocked": [
                {"vm": row.vm.name, "now_on": row.vm.node.name, **(row.problem or {})}
                for row in evacuation.vms
                if _is_held(evacuation, row)
            ],
            "left": left,
            "eta_s": _eta_s(context, session, open_),
            "waiting_for": _stops(evacuation, open_) or _waits_for(context, session, evacuation, open_, left),
        }


def _is_homeward(evacuation: Evacuation) -> bool:
    return evacuation.state in (_E.RESTORING, _E.RESTORED)


def _is_held(evacuation: Evacuation, row: EvacuationVm) -> bool:
    """Whether it is still where it is not to be, or not what it was, for a reason."""
    here = row.vm.node_id == evacuation.node_id
    is_over = evacuation.state is _E.CANCELLED
    is_wrong = row.stopped_at is not None or (here is not _is_homeward(evacuation) and not is_over)
    return row.problem is not None and is_wrong


def _newest(session: Session, evacuation: Evacuation) -> dict[int, Migration]:
    """The newest migration of each VM in the direction that it goes now."""
    own = (Batch.evacuation_id == evacuation.id, Batch.homeward.is_(_is_homeward(evacuation)))
    query = select(Migration).join(Batch).where(*own).order_by(Migration.id)
    return {migration.vm_id: migration for migration in session.scalars(query)}


def _of_others(session: Session, evacuation: Evacuation, *, but: Collection[int]) -> Sequence[Migration]:
    """What somebody else has filed of the VMs on its node: it is waited for."""
    if _is_homeward(evacuation):
        return []
    here = select(Vm.id).where(Vm.node_id == evacuation.node_id)
    wanted = (Migration.vm_id.in_(here), Migration.state.in_(OPEN_MIGRATION), Migration.replication_id.is_(None))
    return session.scalars(select(Migration).where(*wanted, Migration.id.not_in(but))).all()


def _head(evacuation: Evacuation, newest: Mapping[int, Migration]) -> dict[str, Any]:
    counts = Counter(shown_state(each.state, needs_operator=each.needs_operator) for each in newest.values())
    return {
        "id": evacuation.id,
        "node": evacuation.node.name,
        "state": evacuation.state,
        "cause": evacuation.cause,
        "created_at": evacuation.created_at.isoformat(),
        "finished_at": evacuation.finished_at and evacuation.finished_at.isoformat(),
        "deadline": evacuation.deadline and evacuation.deadline.isoformat(),
        "restore_at": evacuation.restore_at and evacuation.restore_at.isoformat(),
        "counts": dict(counts),
    }


def _entry(evacuation: Evacuation, row: EvacuationVm, migration: Migration) -> dict[str, Any]:
    return {
        "vm": row.vm.name,
        "source": migration.source.name,
        "target": migration.target.name,
        "reason": "it was there before" if _is_homeward(evacuation) else row.reason,
        "migration": migration.id,
        "state": shown_state(migration.state, needs_operator=migration.needs_operator),
        "now_on": row.vm.node.name,
    }


def _eta_s(context: Context, session: Session, open_: Sequence[Migration]) -> float | None:
    if not open_:
        return 0.0
    expected = spans(context, session, blocked=blocked_now(session))
    return eta_s([expected.get(migration.id) for migration in open_])


def _stops(evacuation: Evacuation, open_: Sequence[Migration]) -> str | None:
    """In one line, if nothing moves because something is being stopped or started."""
    stopping = [row.vm.name for row in evacuation.vms if row.consent_at is not None and row.problem is None]
    return f"{', '.join(stopping)}: stopped for the move, and started again then" if stopping and not open_ else None


def _waits_for(
    context: Context, session: Session, evacuation: Evacuation, open_: Sequence[Migration], left: Sequence[str]
) -> str:
    """In one line."""
    problem: Mapping[str, str] = evacuation.problem or {}
    name = evacuation.node.name
    match evacuation.state:
        case _E.PAUSED:
            return f"it is paused: haulier evacuation resume {evacuation.id}"
        case _E.BLOCKED:
            what = "is not started" if problem.get("code") == "not_started" else "cannot leave"
            return f"{problem.get('vm')} {what}: {problem.get('message')} ({problem.get('hint')})"
        case _E.DRAINED:
            empty = f"all that was to leave has left, and {', '.join(left)} is there still" if left else "it is empty"
            return f"nothing: {empty}; haulier restore {name} brings all back"
        case _E.CANCELLED | _E.RESTORED:
            return "nothing: it is over"
        case _:
            if problem and not open_:
                return f"{problem['vm']}: {problem['message']} ({problem['hint']})"
            return _moves_wait_for(context, session, open_)


def _moves_wait_for(context: Context, session: Session, open_: Sequence[Migration]) -> str:
    waiting = [migration for migration in open_ if migration.state is MigrationState.QUEUED]
    at_work = len(open_) - len(waiting)
    if any(migration.needs_operator for migration in open_):
        stuck = next(migration for migration in open_ if migration.needs_operator)
        return f"an operator: haulier migration show {stuck.id}"
    if not waiting:
        return f"{at_work} moves that are at work"
    first = min(waiting, key=lambda migration: (migration.rank, migration.id))
    hold = holds_of(context, session, [first.id])[first.id]
    return f"{at_work} moves at work, {len(waiting)} wait; the first of these, {first.vm.name}, for: {hold.text}"
