"""What is done about a VM that somebody consented to stop for its move, each in the transaction that has decided it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from sqlalchemy import select

from haulier.errors import Problem
from haulier.planner.consents import BEGINS_IN_S, ConsentAct
from haulier.services.consent_case import MOVES, Case
from haulier.services.holds import holds_of
from haulier.services.moves import end_waiting
from haulier.services.operations import end_operation, file_operation
from haulier.services.stopped import NOT_BEGUN, NOT_STARTED, NOT_STOPPED, failed, words_of
from haulier.services.waiting import go_on_message
from haulier.services.way import ask_to_make_way
from models import Batch, Migration, MigrationState, Node, NodeState, Operation, OperationKind, OperationState

# A guest that has not powered off in this time is ended.
GRACE_S = 120.0


def _wait(case: Case) -> None:
    """The next beat looks again."""


def _make_way(case: Case) -> None:
    ask_to_make_way(case.unit, case.vm)


def _stop(case: Case) -> None:
    """The consent is used up by it, whatever becomes of it."""
    row, vm = case.row, case.vm
    operation = file_operation(case.unit, vm, OperationKind.STOP, grace_s=GRACE_S)
    row.consent_at, row.stopped_at, row.problem = None, operation.created_at, None
    row.target_id = case.unit.session.scalar(select(Node.id).where(Node.name == case.place))
    case.unit.note("evacuation.stopping", vm=vm.name, node=vm.node.name, evacuation=row.evacuation_id)


def _start(case: Case) -> None:
    unit, row, vm = case.unit, case.row, case.vm
    if vm.node_id == case.evacuation.node_id and row.problem is None:
        waiting = list(_waiting(case))
        why = _why_not_moved(case, waiting[0] if waiting else None)
        for migration in waiting:
            end_waiting(unit, migration, (why,))
        # What held it while it ran holds it again.
        row.tried_after = 0
        _tell(case, why)
    file_operation(unit, vm, OperationKind.START)
    unit.note("evacuation.starting", vm=vm.name, node=vm.node.name, evacuation=row.evacuation_id)


def _waiting(case: Case) -> Iterator[Migration]:
    """Its migrations out of the node that nobody has begun."""
    own = (Batch.evacuation_id == case.evacuation.id, Batch.homeward.is_(False))
    waits = (Migration.vm_id == case.vm.id, Migration.state == MigrationState.QUEUED)
    query = select(Migration).join(Batch, Batch.id == Migration.batch_id).where(*own, *waits)
    yield from case.unit.session.scalars(query.with_for_update(of=Migration).execution_options(populate_existing=True))


def _why_not_moved(case: Case, migration: Migration | None) -> Problem:
    evacuation, name = case.evacuation, case.vm.name
    if evacuation.state not in MOVES:
        why = f"evacuation {evacuation.id} is {evacuation.state}"
    else:
        why = f"its move did not begin within {BEGINS_IN_S:.0f} s"
        holds = holds_of(case.unit.context, case.unit.session, [migration.id]) if migration else {}
        why += "".join(f": {hold.text}" for hold in holds.values())
    words = f"{name} was stopped for its move, and is started again where it was: {why}"
    return Problem(NOT_BEGUN, words, f"haulier evacuation consent {evacuation.id} {name}")


def _tell_off(case: Case) -> None:
    """Why it does not run. A person is to look; meanwhile it goes on being tried where that may help."""
    vm, newest = case.vm, case.since.newest
    hint = f"haulier vm start {vm.name}"
    if vm.node.state is NodeState.LOST:
        why, hint = f"node {vm.node.name} was declared lost", f"haulier recover {vm.name} --on NODE"
    elif failed(newest, OperationKind.START):
        why = words_of(newest)
    elif newest is not None and newest.state is OperationState.READY:
        # It is carried out as soon as there is a worker: to file another one would be refused.
        why, hint = f"the worker of {newest.node.name} does not begin with it", f"haulier node show {newest.node.name}"
    else:
        why = "its QEMU ended, and it is not known how"
    _tell(case, Problem(NOT_STARTED, f"{vm.name} was stopped for its move, and does not start: {why}", hint))


def _tell(case: Case, problem: Problem) -> None:
    """Write it down, with an event where it is another one than before."""
    row, vm, told = case.row, case.vm, problem.as_dict()
    if row.problem == told:
        return
    if row.problem is None or row.problem["code"] != problem.code:
        case.unit.note("evacuation.held", vm=vm.name, node=vm.node.name, evacuation=row.evacuation_id, problem=told)
    row.problem = told
    case.unit.send(go_on_message(row.evacuation_id))


def _take_back(case: Case) -> None:
    own = Operation.id == (case.since.stop.id if case.since.stop else None)
    query = select(Operation).where(own).with_for_update(of=Operation).execution_options(populate_existing=True)
    stop = case.unit.session.scalar(query)
    if stop is None or stop.state is not OperationState.READY:
        # Its worker has just taken it.
        return
    why = "its worker did not begin with it" if case.is_there else f"evacuation {case.evacuation.id} is over"
    problem = Problem(NOT_STOPPED, f"{case.vm.name} was not stopped for its move: {why}")
    end_operation(case.unit, stop.id, OperationState.FAILED, (problem,), not_taken=True)
    _not_stopped(case, problem.message)


def _tell_not_stopped(case: Case) -> None:
    _not_stopped(case, f"{case.vm.name} could not be stopped for its move: {words_of(case.since.newest)}")


def _not_stopped(case: Case, words: str) -> None:
    row = case.row
    row.stopped_at, row.tried_after = None, 0
    if case.is_there:
        _tell(case, Problem(NOT_STOPPED, words, f"haulier evacuation consent {row.evacuation_id} {case.vm.name}"))


def _forget(case: Case) -> None:
    row, vm = case.row, case.vm
    row.consent_at, row.tried_after = None, 0
    case.unit.note("evacuation.consent_over", vm=vm.name, node=vm.node.name, evacuation=row.evacuation_id)
    if isinstance(case.place, Problem):
        _tell(case, case.place)
    case.unit.send(go_on_message(row.evacuation_id))


def _over(case: Case) -> None:
    """It runs again. Why it has not moved stands there until it is tried again."""
    row = case.row
    row.consent_at = row.stopped_at = None
    if not case.is_there or (row.problem and row.problem["code"] == NOT_STARTED):
        row.problem = None
    case.unit.send(go_on_message(row.evacuation_id))


ACTS: Mapping[ConsentAct, Callable[[Case], None]] = {
    ConsentAct.WAIT: _wait,
    ConsentAct.STOP: _stop,
    ConsentAct.START: _start,
    ConsentAct.TELL: _tell_off,
    ConsentAct.MAKE_WAY: _make_way,
    ConsentAct.TAKE_BACK: _take_back,
    ConsentAct.NOT_STOPPED: _tell_not_stopped,
    ConsentAct.FORGET: _forget,
    ConsentAct.OVER: _over,
}
