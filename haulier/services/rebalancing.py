"""Few moves that mend rules and make nodes more equally full: planned by the same planner, and filed as a batch.

There is no row of it beside the batch: what has failed, or was not begun, is seen by whoever asks the next time.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.planner.placing.rebalance import GainfulMove, Rebalancing
from haulier.planner.placing.rebalance import rebalance as find_moves
from haulier.services.admission import AT_ONCE_S, admit
from haulier.services.batches import show_batch
from haulier.services.cluster import Movable, Question, load_census
from haulier.services.context import Context, Unit
from haulier.services.filing import Terms, Wanted, meets_another
from haulier.services.forecast import eta_s
from haulier.services.liveness import silent_s
from haulier.services.placed_moves import (
    PLACED_AGAIN,
    PLACING,
    Known,
    ToPlace,
    find_places,
    moves_spans,
    newest_promise,
    write_moves,
)
from haulier.services.stopped import STOP_IS_OPEN
from haulier.services.waiting import make_room
from models import (
    Batch,
    Evacuation,
    EvacuationPolicy,
    EvacuationVm,
    Migration,
    Node,
    NodeState,
    Operation,
    Vm,
    VmState,
)
from models.transitions import OPEN_EVACUATION, OPEN_MIGRATION, OPEN_OPERATION

USUAL_MOVES = 5
MOST_MOVES = 100
# After what users want, and after evacuations.
REBALANCE_PRIORITY = 20
_NAME = "rebalance"
# A node that is being emptied is emptied by its evacuation, and from one that was lost nothing can leave.
_MAY_GIVE = (NodeState.ONLINE, NodeState.MAINTENANCE)
# The nodes whose evacuations are not over: these are emptied, empty, or being filled again.
_EVACUATED = select(Evacuation.node_id).where(Evacuation.state.in_(OPEN_EVACUATION))


@dataclass(frozen=True, slots=True)
class _Plan:
    """The moves that nobody refuses, with the VMs, the bytes of each, and what was promised when all was read. Nodes
    that are `closed` take nothing; some moves that would have paid were `refused`, by their VMs.
    """

    found: Rebalancing
    closed: Mapping[str, Problem]
    refused: Mapping[str, Problem]
    vms: Mapping[str, Movable]
    bytes: Mapping[tuple[str, str], int]
    eta_s: float | None
    newest: tuple[int, int]


def plan_rebalance(context: Context, *, moves: int = USUAL_MOVES) -> dict[str, Any]:
    """The best moves, so many at most, each with its reason and gain. Touches nothing. Raises Refused for a number that
    is none.
    """
    _require_number(moves)
    return _document(_plan(context, moves, alone=False))


def rebalance(context: Context, *, moves: int = USUAL_MOVES) -> dict[str, Any]:
    """File these moves as a batch, and begin them as far as the limits leave room. If no move pays, there is no batch.

    Raises Refused for a number that is none, and while the moves of an earlier one are not over; nothing is filed then.
    """
    _require_number(moves)
    for left in reversed(range(PLACED_AGAIN)):
        plan = _plan(context, moves, alone=True)
        if not plan.found.moves:
            return _document(plan)
        batch_id = _file(context, plan, only_if_newest=left > 0)
        if batch_id is not None:
            admit(context, at_most_s=AT_ONCE_S)
            batch = show_batch(context, batch_id)
            wanted = ("state", "counts", "eta_s", "migrations")
            return {**_document(plan), "batch": batch_id, **{name: batch[name] for name in wanted}}
    words = "VMs were moved by others each time that places had been found"
    raise Refused("rebalance_overtaken", words, "haulier rebalance, once more.")


def _require_number(moves: int) -> None:
    if not 1 <= moves <= MOST_MOVES:
        raise Refused("bad_moves", f"{moves} moves are none", f"1 to {MOST_MOVES}.")


def _require_none_open(session: Session) -> None:
    query = (
        select(Batch.id)
        .join(Migration, Migration.batch_id == Batch.id)
        .where(Migration.state.in_(OPEN_MIGRATION), Batch.name == _NAME, Batch.key.startswith(f"{_NAME} "))
    )
    there = session.scalar(query.limit(1))
    if there is not None:
        hint = f"haulier batch show {there}; or: haulier batch cancel {there}"
        raise Refused("rebalance_open", f"the moves of batch {there} are not over, and count already", hint)


def _plan(context: Context, moves: int, *, alone: bool) -> _Plan:
    """Find the moves. All is read first, and no transaction is open while they are looked for. Raises Refused if this
    one is to be `alone`, and is not.
    """
    with context.database.read() as session:
        if alone:
            _require_none_open(session)
        newest = newest_promise(session)
        wanted = _wanted(context, session)
    found, known = find_places(context, wanted, lambda cluster: find_moves(cluster, most=moves))
    agreed = known.agreed(found.moves)
    return _Plan(
        dataclasses.replace(found, moves=agreed),
        {host.name: host.closed for host in wanted.census.hosts if host.closed is not None},
        _refused(known, {move.guest for move in agreed}),
        wanted.census.vms,
        known.bytes,
        eta_s(moves_spans(context, wanted, agreed, known)),
        newest,
    )


def _refused(known: Known, moved: Collection[str]) -> dict[str, Problem]:
    """Why a VM cannot be moved at all, or not where it would have paid."""
    at_targets = {name: next(iter(targets.values())) for name, targets in known.avoids.items()}
    return {name: problem for name, problem in sorted({**at_targets, **known.stuck}.items()) if name not in moved}


def _wanted(context: Context, session: Session) -> ToPlace:
    known = {node.id for node in session.scalars(select(Node)) if _is_known(context, node)}
    rows = session.execute(select(Vm.id, Vm.node_id).where(*_movable()))
    question = Question([row.id for row in rows if row.node_id in known], _filled_again(session), in_place=True)
    return ToPlace(load_census(context, session, question), _terms)


def _is_known(context: Context, node: Node) -> bool:
    """Of a node whose RAM nobody knows it cannot be said how full it is."""
    silent = silent_s(node, limit_s=context.settings.node_silent_after_s) is not None
    return not silent and bool(node.facts.get("ram_bytes"))


def _movable() -> tuple[ColumnElement[bool], ...]:
    """Of the VMs those that run, and that nobody moves, works on, keeps where they are, or is going to stop or to bring
    home.
    """
    on_way = select(Migration.vm_id).where(Migration.state.in_(OPEN_MIGRATION), Migration.replication_id.is_(None))
    busy = select(Operation.vm_id).where(Operation.state.in_(OPEN_OPERATION), Operation.vm_id.is_not(None))
    away = (
        select(EvacuationVm.vm_id)
        .join(Evacuation, Evacuation.id == EvacuationVm.evacuation_id)
        # Whoever brings back what one evacuation of a node has sent away brings back what those before it have.
        .where(Evacuation.node_id.in_(_EVACUATED))
        .where(EvacuationVm.is_home.is_(False), EvacuationVm.target_id.is_not(None))
    )
    stopping = select(EvacuationVm.vm_id).where(STOP_IS_OPEN)
    givers = select(Node.id).where(Node.state.in_(_MAY_GIVE), Node.id.not_in(_EVACUATED))
    return (
        Vm.state == VmState.RUNNING,
        Vm.evacuation != EvacuationPolicy.STAY,
        Vm.node_id.in_(givers),
        *(Vm.id.not_in(others) for others in (on_way, busy, away, stopping)),
    )


def _filled_again(session: Session) -> dict[str, Problem]:
    """The nodes that take VMs, but those of their evacuations before any others."""
    query = (
        select(Node.name, Evacuation.id, Evacuation.state)
        .join(Evacuation, Evacuation.node_id == Node.id)
        .where(Node.state == NodeState.ONLINE, Evacuation.state.in_(OPEN_EVACUATION))
    )
    return {
        name: Problem(
            "evacuation_open", f"evacuation {number} of {name} is {state}", f"haulier evacuation show {number}"
        )
        for name, number, state in session.execute(query)
    }


def _terms(_: Vm) -> Terms:
    """What fails is not tried again: by then other moves may be better. No guest stands still for long, though it might
    when its node is emptied: it may as well stay.
    """
    return Terms(priority=REBALANCE_PRIORITY)


def _file(context: Context, plan: _Plan, *, only_if_newest: bool) -> int | None:
    """All of it in one transaction. Returns the batch; None if it is to be planned anew, and nothing is written then:
    somebody was faster.
    """
    try:
        with context.unit() as unit:
            session = unit.session
            context.database.exclude_others(session, PLACING)
            _require_none_open(session)
            if only_if_newest and newest_promise(session) != plan.newest:
                return None
            wishes = _wishes(session, plan)
            return None if wishes is None else _write(unit, plan, wishes)
    except IntegrityError as error:
        if not meets_another(error):
            raise
        return None


def _wishes(session: Session, plan: _Plan) -> list[Wanted] | None:
    """The moves by the rows as they are now; None if a VM is not where it was, or not to be moved any more, or a target
    takes nothing any more.
    """
    moves = plan.found.moves
    nodes = {move.guest: plan.vms[move.guest].node_id for move in moves}
    those = (Vm.id.in_([plan.vms[name].id for name in nodes]), *_movable())
    vms = {vm.name: vm for vm in session.scalars(select(Vm).where(*those)) if vm.node_id == nodes[vm.name]}
    open_ = (Node.state == NodeState.ONLINE, Node.id.not_in(_EVACUATED))
    wanted = {move.target for move in moves}
    targets = {node.name: node for node in session.scalars(select(Node).where(Node.name.in_(wanted), *open_))}
    if len(vms) < len(moves) or len(targets) < len(wanted):
        return None
    return [
        Wanted(vms[move.guest], targets[move.target], _terms(vms[move.guest]), plan.bytes[move.guest, move.target])
        for move in moves
    ]


def _write(unit: Unit, plan: _Plan, wishes: list[Wanted]) -> int:
    session, moment = unit.session, now()
    batch = Batch(key=f"{_NAME} {uuid.uuid4().hex}", name=_NAME, forgiven=0, created_at=moment)
    session.add(batch)
    session.flush()
    numbers = write_moves(unit, batch, wishes, at=moment)
    unit.note("batch.submitted", batch=batch.id, name=_NAME, migrations=len(numbers))
    for move, number in zip(plan.found.moves, numbers, strict=True):
        told = _move(move, plan)
        unit.note("rebalance.placed", vm=told.pop("vm"), node=move.source, migration=number, batch=batch.id, **told)
    make_room(unit)
    return batch.id


def _document(plan: _Plan) -> dict[str, Any]:
    """A plan as contract.md shows plans; nothing of it is filed yet."""
    found = plan.found
    return {
        "batch": None,
        "state": "planned" if found.moves else "even",
        "plan": [_move(move, plan) for move in found.moves],
        "loads": [asdict(load) for load in found.loads],
        "left": round(found.left, 4),
        "broken_rules": list(found.broken),
        "closed": [{"node": name, **problem.as_dict()} for name, problem in plan.closed.items()],
        "refused": [{"vm": name, **problem.as_dict()} for name, problem in plan.refused.items()],
        "counts": {"to_move": len(found.moves)},
        "eta_s": plan.eta_s,
        "migrations": [],
    }


def _move(move: GainfulMove, plan: _Plan) -> dict[str, Any]:
    return {
        "vm": move.guest,
        "source": move.source,
        "target": move.target,
        "reason": move.reason,
        "gain": round(move.gain, 4),
        "mends": list(move.mends),
        "bytes": plan.bytes[move.guest, move.target],
    }
