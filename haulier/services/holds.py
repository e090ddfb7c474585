"""What holds those that wait before they begin, as `admit` would find it."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, select, true
from sqlalchemy.orm import Session, aliased

from haulier.clock import now
from haulier.planner.limits import Hold
from haulier.services.admission import waiting, wish_of
from haulier.services.context import Context
from haulier.services.room import load_room
from models import WAITS, Batch, BatchState, Gate, Migration, MigrationAfter, MigrationState, Operation, Vm
from models.transitions import AT_WORK, OPEN_OPERATION

ITS_TURN = Hold("turn", "its turn comes as soon as those before it have theirs")


def holds_of(context: Context, session: Session, ids: Collection[int]) -> dict[int, Hold]:
    """What holds these few of those that wait, however many there are.

    Those before them in the queue are not looked at: one that has room, and only them before it, has its turn.
    """
    rows = session.execute(waiting().where(Migration.id.in_(ids))).all()
    room, blocked, busy = load_room(context, session, Gate.PREPARE), blocked_now(session, ids), busy_with(session, ids)
    return {row.id: blocked.get(row.id) or room.hold_of(wish_of(row)) or busy.get(row.id, ITS_TURN) for row in rows}


def blocked_now(session: Session, ids: Collection[int] | None = None) -> dict[int, Hold]:
    """Those that something else than a limit holds, by their numbers: of these, or of all that wait."""
    among = true() if ids is None else Migration.id.in_(ids)
    return {**_failed_just_now(session, among), **_behind_others(session, among), **_in_closed_batches(session, among)}


def _failed_just_now(session: Session, among: ColumnElement[bool]) -> dict[int, Hold]:
    moment, found = now(), dict[int, Hold]()
    for migration in session.scalars(select(Migration).where(WAITS, among, Migration.not_before > moment)):
        why = migration.problems[0]["message"] if migration.problems else "it failed"
        left_s = (migration.not_before - moment).total_seconds() if migration.not_before else 0
        found[migration.id] = Hold("delay", f"tried again in {left_s:.0f} s: {why}")
    return found


def _in_closed_batches(session: Session, among: ColumnElement[bool]) -> dict[int, Hold]:
    query = (
        select(Migration.id, Batch.id.label("batch"), Batch.state)
        .join(Batch, Batch.id == Migration.batch_id)
        .where(WAITS, among, Batch.state != BatchState.OPEN)
    )
    return {row.id: Hold("batch", f"batch {row.batch} is {row.state}") for row in session.execute(query)}


def _behind_others(session: Session, among: ColumnElement[bool]) -> dict[int, Hold]:
    before, vm = aliased(Migration), aliased(Vm)
    query = (
        select(Migration.id, vm.name)
        .join(MigrationAfter, MigrationAfter.migration_id == Migration.id)
        .join(before, before.id == MigrationAfter.after_id)
        .join(vm, vm.id == before.vm_id)
        .where(WAITS, among, before.state != MigrationState.DONE)
    )
    names: dict[int, list[str]] = {}
    for row in session.execute(query.order_by(vm.name)):
        names.setdefault(row.id, []).append(row.name)
    return {number: Hold("after", f"to be moved before: {', '.join(before)}") for number, before in names.items()}


def busy_with(session: Session, ids: Collection[int]) -> dict[int, Hold]:
    """What works on the VMs of those that there is room for."""
    found = dict[int, Hold]()
    at_work = (Migration.vm_id == Vm.id, Migration.state.in_(AT_WORK))
    operating = (Operation.vm_id == Vm.id, Operation.state.in_(OPEN_OPERATION))
    syncs = select(Vm.id, Vm.name, Migration.id).join(Migration, at_work[0]).where(at_work[1])
    works = select(Vm.id, Vm.name, Operation.kind).join(Operation, operating[0]).where(operating[1])
    rows = session.execute(select(Migration.vm_id, Migration.id).where(Migration.id.in_(ids)))
    vms = {row.vm_id: row.id for row in rows}
    for vm_id, name, sync in session.execute(syncs.where(Vm.id.in_(vms))):
        found[vms[vm_id]] = Hold("vm", f"sync {sync} of {name} makes way")
    for vm_id, name, kind in session.execute(works.where(Vm.id.in_(vms))):
        found[vms[vm_id]] = Hold("vm", f"VM {name} is busy: {kind} is not over")
    return found
