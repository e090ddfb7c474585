"""What the rows say of VMs that may be stopped for their move, or were, and are to be started again."""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from haulier.errors import Problem
from haulier.planner.refusals import STARTED
from models import Evacuation, EvacuationVm, Operation, OperationKind, OperationState, Vm, VmState

# One that is to be stopped, or was and has not been seen to run again since; also of an evacuation that is over.
STOP_IS_OPEN = or_(EvacuationVm.consent_at.is_not(None), EvacuationVm.stopped_at.is_not(None))
_FAILED = (OperationState.FAILED, OperationState.REFUSED)


def to_be_stopped(session: Session, evacuation: Evacuation) -> set[int]:
    """The VMs that run, and are to be stopped; by their ids."""
    query = (
        select(EvacuationVm.vm_id)
        .join(Vm, Vm.id == EvacuationVm.vm_id)
        .where(EvacuationVm.evacuation_id == evacuation.id, EvacuationVm.consent_at.is_not(None))
        .where(Vm.state.in_(STARTED))
    )
    return set(session.scalars(query))


def to_be_started(session: Session, evacuation: Evacuation) -> dict[str, Problem | None]:
    """The VMs that are to be started again, wherever they are, each with the reason why it was not."""
    query = (
        select(EvacuationVm, Vm)
        .join(Vm, Vm.id == EvacuationVm.vm_id)
        .where(EvacuationVm.evacuation_id == evacuation.id, EvacuationVm.stopped_at.is_not(None))
        .where(Vm.state == VmState.STOPPED)
    )
    return {vm.name: start_problem(session, row, vm) for row, vm in session.execute(query)}


def start_problem(session: Session, row: EvacuationVm, vm: Vm) -> Problem | None:
    """Why one that was stopped was not started again: it was tried, and failed. A person is to look."""
    tried = (Operation.vm_id == vm.id, Operation.kind == OperationKind.START, Operation.created_at >= row.stopped_at)
    newest = session.scalar(select(Operation).where(*tried).order_by(Operation.id.desc()).limit(1))
    if newest is None or newest.state not in _FAILED:
        return None
    why = newest.problems[0]["message"] if newest.problems else "it failed"
    words = f"{vm.name} was stopped for its move, and does not start: {why}"
    return Problem("not_started", words, f"haulier vm start {vm.name}")
