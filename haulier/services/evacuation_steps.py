"""An evacuation goes on: who has no way yet is placed and filed, and its state follows what the rows say.

Asked at its begin, when one of its migrations has ended, and by beat; who dies here has written all of a step or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Problem
from haulier.planner.failures import FailureClass, class_of
from haulier.planner.placing.cluster import PARTNER_LEAVING
from haulier.services.context import Context, Unit
from haulier.services.evacuation_plan import Plan, plan_moves, terms_of_vm, to_place
from haulier.services.evacuation_rows import Situation, look, silent_home
from haulier.services.evacuation_wishes import note_drained
from haulier.services.filing import Wanted, meets_another
from haulier.services.placed_moves import PLACED_AGAIN, PLACING, ToPlace, newest_promise, still_there, write_moves
from haulier.services.roll_turns import tell_rolls
from haulier.services.stopped import ask, changed_since
from haulier.services.waiting import go_on_message, make_room
from models import (
    Batch,
    BatchState,
    Evacuation,
    EvacuationState,
    EvacuationVm,
    Migration,
    MigrationState,
    Node,
    NodeState,
    Vm,
)
from models.transitions import OPEN_MIGRATION, require_legal

_GOES_ON = (EvacuationState.PLANNED, EvacuationState.RUNNING, EvacuationState.BLOCKED, EvacuationState.RESTORING)
_E = EvacuationState


def sweep_evacuations(context: Context, *, blocked_too: bool) -> None:
    """Have all that go on looked at, and if wanted those that are blocked: a node may be back, or room may be free."""
    states = [state for state in _GOES_ON if blocked_too or state is not _E.BLOCKED]
    with context.database.read() as session:
        ids = session.scalars(select(Evacuation.id).where(Evacuation.state.in_(states)).order_by(Evacuation.id)).all()
    if ids:
        with context.unit() as unit:
            unit.send(*map(go_on_message, ids))


def go_on(context: Context, evacuation_id: int) -> None:
    """File what is to be filed of an evacuation, and write down how it stands. Safe to call at any time, by many."""
    for left in reversed(range(PLACED_AGAIN)):
        with context.database.read() as session:
            evacuation = session.get(Evacuation, evacuation_id)
            if evacuation is None or evacuation.state not in _GOES_ON:
                return
            seen = look(context, session, evacuation)
            wanted = _wanted(context, session, seen)
        plan = plan_moves(context, wanted) if wanted else None
        try:
            with context.unit() as unit:
                # Where somebody files one at each moment, the last plan stands: each target is asked again when its
                # move begins.
                if _write(unit, evacuation_id, seen, plan, only_if_newest=left > 0):
                    return
        except IntegrityError as error:
            # A user has filed a migration of one of these VMs in this moment.
            if not meets_another(error):
                raise


def _wanted(context: Context, session: Session, seen: Situation) -> ToPlace | None:
    if not seen.to_place or seen.node_lost:
        return None
    return to_place(context, session, seen.to_place, seen.question, waiting=seen.waiting)


def _write(unit: Unit, evacuation_id: int, seen: Situation, plan: Plan | None, *, only_if_newest: bool) -> bool:
    """All of a step. False if it is wanted only if since it was planned nobody has filed anything, and no VM of it has
    gone elsewhere, and that is not so.
    """
    session = unit.session
    unit.context.database.exclude_others(session, PLACING)
    evacuation = session.get_one(Evacuation, evacuation_id, with_for_update=True, populate_existing=True)
    if evacuation.state not in _GOES_ON or (evacuation.state is _E.RESTORING) is not seen.homeward:
        return True
    vms = still_there(session, {vm.id: vm.node_id for vm in seen.to_place})
    all_there = len(vms) == len(seen.to_place)
    # Of these nothing may be written that was read before somebody consented to stop them.
    late = changed_since(session, evacuation, seen.marks)
    if only_if_newest and late:
        return False
    if plan is not None and only_if_newest and not (all_there and newest_promise(session) == seen.newest):
        return False
    vms = {name: vm for name, vm in vms.items() if name not in late}
    # Whoever files work on a VM of it refers to its row, may hold that VM, and goes on.
    held = {"key_share": True}
    node = session.get_one(Node, evacuation.node_id, with_for_update=held, populate_existing=True)
    problems = dict(seen.stuck) | ({vm.name: seen.node_lost for vm in seen.to_place} if seen.node_lost else {})
    if plan is not None:
        problems |= {blocked.guest: blocked.problem for blocked in plan.blocked}
        _file(unit, evacuation, seen, plan, vms=vms)
    problems = {name: problem for name, problem in problems.items() if name not in late}
    problems = _note_blocked(unit, evacuation, problems)
    first = next(iter(sorted(problems.items())), None)
    evacuation.problem = {"vm": first[0], **first[1].as_dict()} if first else None
    # Such a place becomes free by itself; for any other somebody is to look.
    waits = any(problem.code == PARTNER_LEAVING for problem in problems.values())
    goes_on = bool(late or waits or seen.on_way or (plan and plan.moves))
    if seen.homeward:
        # What passes by itself is waited for: a host that is still booting is silent, also where nothing comes back.
        passing = any(class_of(problem.code) is FailureClass.PASSING for problem in problems.values())
        is_away = silent_home(unit.context, node) is not None
        _end_restore(unit, evacuation, is_over=not (goes_on or passing or seen.waiting or is_away))
    else:
        _follow(unit, evacuation, node, goes_on=goes_on)
    make_room(unit)
    session.flush()
    if plan is not None:
        # The last: whoever begins one of these may hold its VM, and wait for nobody then.
        _send_elsewhere(session, seen, plan)
    return True


def _file(unit: Unit, evacuation: Evacuation, seen: Situation, plan: Plan, *, vms: Mapping[str, Vm]) -> None:
    """A migration for each move of these VMs, but of those that wait already."""
    if not plan.moves:
        return
    evacuation.plans += 1
    session, moment = unit.session, now()
    known, moves = _rows(session, evacuation), [move for move in plan.moves if move.guest in vms]
    wanted = {move.target for move in moves}
    nodes = {node.name: node for node in session.scalars(select(Node).where(Node.name.in_(wanted)))}
    batch = _batch(session, evacuation, homeward=seen.homeward, moment=moment)
    wishes = list[Wanted]()
    for move in moves:
        vm, target = vms[move.guest], nodes[move.target]
        if move.guest not in seen.waiting:
            wishes.append(Wanted(vm, target, terms_of_vm(vm), plan.bytes[move.guest]))
        if not seen.homeward:
            row = _row(session, evacuation, known, vm)
            row.target_id, row.reason, row.problem = target.id, move.reason, None
        kind = "evacuation.restoring" if seen.homeward else "evacuation.placed"
        unit.note(
            kind,
            vm=move.guest,
            node=evacuation.node.name,
            evacuation=evacuation.id,
            target=move.target,
            reason=move.reason,
        )
    write_moves(unit, batch, wishes, at=moment)
    session.flush()


def _batch(session: Session, evacuation: Evacuation, *, homeward: bool, moment: datetime) -> Batch:
    key = f"evacuation {evacuation.id}{' back' if homeward else ''}"
    batch = session.scalar(select(Batch).where(Batch.key == key))
    if batch is None:
        name = f"{'restore' if homeward else 'evacuate'} {evacuation.node.name}"
        batch = Batch(key=key, name=name, evacuation_id=evacuation.id, homeward=homeward, forgiven=0, created_at=moment)
        session.add(batch)
    if batch.state is BatchState.CANCELLED:
        # Of a restore that was cancelled, and is asked for again.
        batch.state = BatchState.OPEN
    session.flush()
    return batch


def _send_elsewhere(session: Session, seen: Situation, plan: Plan) -> None:
    """Those that wait keep their places in the queue. Only if they still do: who begins one has asked its target."""
    waits = (Migration.id.in_(seen.waiting.values()), Migration.state == MigrationState.QUEUED)
    free = set(session.scalars(select(Migration.id).where(*waits).with_for_update(skip_locked=True)))
    names = {move.target for move in plan.moves}
    nodes = {row.name: row.id for row in session.execute(select(Node.name, Node.id).where(Node.name.in_(names)))}
    for move in plan.moves:
        if (number := seen.waiting.get(move.guest)) in free:
            values = {"target_id": nodes[move.target], "planned_bytes": plan.bytes[move.guest]}
            session.execute(update(Migration).where(Migration.id == number).values(values))


def _rows(session: Session, evacuation: Evacuation) -> dict[int, EvacuationVm]:
    """What is written down of its VMs, by their ids."""
    query = select(EvacuationVm).where(EvacuationVm.evacuation_id == evacuation.id)
    return {row.vm_id: row for row in session.scalars(query)}


def _row(session: Session, evacuation: Evacuation, known: dict[int, EvacuationVm], vm: Vm) -> EvacuationVm:
    if vm.id not in known:
        known[vm.id] = EvacuationVm(evacuation_id=evacuation.id, vm_id=vm.id, is_home=False)
        session.add(known[vm.id])
    return known[vm.id]


def _note_blocked(unit: Unit, evacuation: Evacuation, problems: Mapping[str, Problem]) -> dict[str, Problem]:
    """Each with its reason, as it is told; an event only where that is another one than before."""
    session, known, told = unit.session, _rows(unit.session, evacuation) if problems else {}, dict[str, Problem]()
    for vm in session.scalars(select(Vm).where(Vm.name.in_(problems)).order_by(Vm.name)):
        row = _row(session, evacuation, known, vm)
        told[vm.name] = ask(evacuation, vm, problems[vm.name])
        problem = told[vm.name].as_dict()
        if row.problem is None or row.problem["code"] != problem["code"]:
            unit.note(
                "evacuation.held", vm=vm.name, node=evacuation.node.name, evacuation=evacuation.id, problem=problem
            )
        row.problem = problem
    return told


def _follow(unit: Unit, evacuation: Evacuation, node: Node, *, goes_on: bool) -> None:
    """Its state and its node's, by what is left. One that was lost and is back is its own again."""
    state = _E.RUNNING if goes_on else _E.BLOCKED if evacuation.problem else _E.DRAINED
    if node.state is not NodeState.LOST:
        node.state = NodeState.DRAINED if state is _E.DRAINED else NodeState.DRAINING
    if state is _E.DRAINED:
        note_drained(evacuation, now())
    move_evacuation(unit, evacuation, state)


def _end_restore(unit: Unit, evacuation: Evacuation, *, is_over: bool) -> None:
    """Who is where it was is home, for all who have sent it away since."""
    session = unit.session
    # Not such as are about to leave, because they had begun to.
    going = select(Migration.vm_id).where(Migration.state.in_(OPEN_MIGRATION), Migration.replication_id.is_(None))
    home = select(Vm.id).where(Vm.node_id == evacuation.node_id, Vm.id.not_in(going))
    first = (
        select(EvacuationVm.vm_id, Evacuation.id)
        .join(Evacuation, Evacuation.id == EvacuationVm.evacuation_id)
        .where(Evacuation.node_id == evacuation.node_id, EvacuationVm.vm_id.in_(home), EvacuationVm.is_home.is_(False))
    )
    for vm_id, since in session.execute(first).all():
        later = (EvacuationVm.vm_id == vm_id, EvacuationVm.evacuation_id >= since)
        session.execute(update(EvacuationVm).where(*later).values(is_home=True, problem=None))
    if is_over:
        move_evacuation(unit, evacuation, _E.RESTORED)


def move_evacuation(unit: Unit, evacuation: Evacuation, to: EvacuationState) -> None:
    """Move it to a state, with an event; the caller holds its row. Nothing happens where it is in that already."""
    if evacuation.state is to:
        return
    require_legal(evacuation.state, to)
    evacuation.state = to
    evacuation.finished_at = now() if to in (_E.DRAINED, _E.CANCELLED, _E.RESTORED) else None
    unit.note(
        f"evacuation.{to}",
        node=evacuation.node.name,
        evacuation=evacuation.id,
        problem=evacuation.problem if to is _E.BLOCKED else None,
    )
    unit.ring(f"evacuation.{evacuation.id}")
    tell_rolls(unit, evacuation)
