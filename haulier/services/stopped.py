"""What the rows say of VMs that may be stopped for their move, or were, and are to be started again.

One with a `problem` is not to be moved any more, only to be started where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from haulier.errors import Problem
from haulier.planner.refusals import STARTED
from models import Evacuation, EvacuationPolicy, EvacuationVm, Operation, OperationKind, OperationState, Vm, VmState

# One that is to be stopped, or was and has not been seen to run again since; also of an evacuation that is over.
STOP_IS_OPEN = or_(EvacuationVm.consent_at.is_not(None), EvacuationVm.stopped_at.is_not(None))
NOT_STARTED = "not_started"
NOT_STOPPED = "not_stopped"
NOT_BEGUN = "move_not_begun"
# What stands of these is the reason until the VM is tried again.
_TELLING = (NOT_STOPPED, NOT_BEGUN)

_STARTS = (OperationKind.START, OperationKind.RECOVER)
_TO_BE_STOPPED, _STOPPED = EvacuationVm.consent_at.is_not(None), EvacuationVm.stopped_at.is_not(None)


@dataclass(frozen=True, slots=True)
class Mark:
    """How far one has come: what was read of it is outdated when it has another mark."""

    consent_at: datetime | None
    stopped_at: datetime | None
    given_up: bool


@dataclass(frozen=True, slots=True)
class Stopped:
    """The VMs of an evacuation that somebody consented to stop.

    `kept` (by their ids) are not to be placed now; `starting` are to run again, each with the reason why it does not;
    `told` are those that run, with what became of the last consent; `marks` are by name.
    """

    kept: frozenset[int]
    starting: Mapping[str, Problem | None]
    told: Mapping[str, Problem]
    marks: Mapping[str, Mark]


def look_at_stopped(session: Session, evacuation: Evacuation) -> Stopped:
    """How these stand. Touches nothing."""
    query = select(EvacuationVm, Vm).join(Vm, Vm.id == EvacuationVm.vm_id)
    query = query.where(EvacuationVm.evacuation_id == evacuation.id)
    rows = [(row[0], row[1]) for row in session.execute(query.where(or_(_TO_BE_STOPPED, _STOPPED)))]
    told = query.where(~_TO_BE_STOPPED, ~_STOPPED, EvacuationVm.problem.is_not(None))
    return Stopped(
        frozenset(vm.id for row, vm in rows if vm.state in STARTED or (row.stopped_at and row.problem)),
        {vm.name: _why_not(row) for row, vm in rows if row.stopped_at and vm.state not in STARTED},
        {
            vm.name: Problem(**row.problem)
            for row, vm in session.execute(told)
            if row.problem and row.problem["code"] in _TELLING
        },
        {vm.name: _mark(row) for row, vm in rows},
    )


def ask(evacuation: Evacuation, vm: Vm, problem: Problem) -> Problem:
    """The reason why one cannot leave; it may be that somebody is asked whether it may be stopped."""
    is_asked = vm.evacuation is EvacuationPolicy.STOP_BY_CONSENT and vm.node_id == evacuation.node_id
    if not is_asked or vm.state is not VmState.RUNNING or problem.code in _TELLING:
        return problem
    first = f"{problem.hint.rstrip('.')}; or, if" if problem.hint else "If"
    return replace(
        problem, hint=f"{first} it may be stopped for its move: haulier evacuation consent {evacuation.id} {vm.name}"
    )


def changed_since(session: Session, evacuation: Evacuation, marks: Mapping[str, Mark]) -> set[str]:
    """The VMs about which somebody has consented, or something was done for that, since these marks were read."""
    query = select(EvacuationVm, Vm.name).join(Vm, Vm.id == EvacuationVm.vm_id)
    query = query.where(EvacuationVm.evacuation_id == evacuation.id, or_(_TO_BE_STOPPED, _STOPPED))
    rows = session.execute(query.execution_options(populate_existing=True))
    marks_now = {name: _mark(row) for row, name in rows}
    return {name for name in {*marks, *marks_now} if marks.get(name) != marks_now.get(name)}


def _mark(row: EvacuationVm) -> Mark:
    return Mark(row.consent_at, row.stopped_at, given_up=row.stopped_at is not None and row.problem is not None)


def _why_not(row: EvacuationVm) -> Problem | None:
    return Problem(**row.problem) if row.problem and row.problem["code"] == NOT_STARTED else None


def is_to_be_started(session: Session, vm: Vm) -> bool:
    """Whether it was stopped for a move, and is off since then by our doing."""
    return session.scalar(select(EvacuationVm.vm_id).where(EvacuationVm.vm_id == vm.id, _STOPPED).limit(1)) is not None


@dataclass(frozen=True, slots=True)
class Since:
    """The stop that was filed for a move, the newest operation of its VM, and whether it was started after the stop."""

    stop: Operation | None
    newest: Operation | None
    was_started: bool

    @property
    def off_since(self) -> datetime | None:
        """When the stop was over."""
        return self.stop.finished_at if self.stop else None


def since_stop(session: Session, row: EvacuationVm) -> Since:
    """What was done with a VM from its stop on."""
    # Filed in one transaction with this moment. From there on by numbers: clocks may be put back.
    own = (Operation.vm_id == row.vm_id, Operation.kind == OperationKind.STOP, Operation.created_at == row.stopped_at)
    stop = session.scalar(select(Operation).where(*own).order_by(Operation.id.desc()).limit(1))
    if stop is None:
        return Since(None, None, was_started=False)
    later = (Operation.vm_id == row.vm_id, Operation.id >= stop.id, Operation.kind.in_((*_STARTS, OperationKind.STOP)))
    found = session.scalars(select(Operation).where(*later).order_by(Operation.id)).all()
    started = any(each.kind in _STARTS and each.state is OperationState.DONE for each in found)
    return Since(stop, found[-1], started)


def failed(operation: Operation | None, kind: OperationKind) -> bool:
    """Whether this is one of the kind that failed."""
    ended = (OperationState.FAILED, OperationState.REFUSED)
    return operation is not None and operation.kind is kind and operation.state in ended


def words_of(operation: Operation | None) -> str:
    """Why it failed."""
    return str(operation.problems[0]["message"]) if operation is not None and operation.problems else "it failed"
