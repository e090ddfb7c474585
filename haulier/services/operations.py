"""Operations: work on one VM at its node that is no migration.

Filed as a row, taken by compare-and-set, awaited by the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update

from haulier.clock import now, steady_s
from haulier.errors import NeedsOperator, Problem, Refused, StepFailed
from haulier.planner.refusals import as_problems, closed_node, silent_node
from haulier.services.context import Context, Message, Unit
from haulier.services.liveness import silent_s
from haulier.services.sightings import Seen
from haulier.services.vm_rows import forget_vm
from haulier.services.waiting import make_room
from models import Migration, Node, NodeState, Operation, OperationKind, OperationState, Vm
from models.transitions import AT_WORK, OPEN_OPERATION

# Beyond what the guest is given to power off: making volumes, starting programs.
_LEASE_S = 180.0
_TAKEN = (OperationState.RUNNING,)
# What a replica has received last may be yet to be merged, and a new device takes as long to be blanked as it is large.
# A worker that dies is noticed when it begins again.
LONG_S = 6 * 3600.0
_LONG = (OperationKind.RECOVER, OperationKind.CREATE)


def require_not_emptied(node: Node) -> None:
    """Raise Refused for a node that an evacuation keeps empty."""
    if node.state in (NodeState.DRAINING, NodeState.DRAINED):
        raise Refused.because((closed_node(node.name, node.state),))


def require_worker(context: Context, node: Node) -> None:
    """Raise Refused `node_silent` unless the node's worker lives, `node_lost` if nobody waits for it any more."""
    silent = silent_s(node, limit_s=context.settings.node_silent_after_s)
    if silent is not None and node.state is NodeState.LOST:
        hint = "A VM that has a replica is started from that: haulier recover VM --on NODE."
        raise Refused("node_lost", f"node {node.name} was declared lost", hint)
    if silent is not None:
        raise Refused.because((silent_node(node.name, silent),))


def require_free(unit: Unit, vm: Vm) -> None:
    """Raise Refused if a migration or an operation of this VM is open."""
    open_migration = unit.session.scalar(
        select(Migration.id).where(Migration.vm_id == vm.id, Migration.state.in_(AT_WORK))
    )
    if open_migration is not None:
        raise Refused(
            "migration_open",
            f"VM {vm.name} is in migration {open_migration}",
            f"haulier migration show {open_migration}",
        )
    require_no_operation(unit, vm)


def require_no_operation(unit: Unit, vm: Vm) -> None:
    """Raise Refused if an operation of this VM is open."""
    busy = unit.session.scalar(
        select(Operation.kind).where(Operation.vm_id == vm.id, Operation.state.in_(OPEN_OPERATION))
    )
    if busy is not None:
        raise Refused("operation_open", f"VM {vm.name} is busy: {busy} is not over", "Wait for it.")


def file_operation(
    unit: Unit, vm: Vm, kind: OperationKind, *, node: Node | None = None, **arguments: object
) -> Operation:
    """File an operation and its message, on the VM's node unless another is given."""
    where = node or vm.node
    operation = Operation(vm_id=vm.id, node_id=where.id, node=where, kind=kind, arguments=arguments, created_at=now())
    unit.session.add(operation)
    unit.session.flush()
    unit.send(_message_for(operation))
    return operation


@dataclass(frozen=True, slots=True)
class Order:
    """An operation that a worker has taken: what it needs to know, in plain values."""

    operation_id: int
    vm_id: int
    vm: str
    arguments: dict[str, Any]


def take_operation(context: Context, operation_id: int) -> Order | None:
    """Take an operation that is ready; None if somebody else has."""
    with context.database.write() as session:
        operation = session.get(Operation, operation_id, with_for_update=True)
        if operation is None or operation.vm is None or operation.state is not OperationState.READY:
            return None
        operation.state = OperationState.RUNNING
        usual_s = LONG_S if operation.kind in _LONG else _LEASE_S
        operation.lease_s = usual_s + float(operation.arguments.get("grace_s", 0))
        operation.lease_until = now() + timedelta(seconds=operation.lease_s)
        return Order(operation.id, operation.vm.id, operation.vm.name, operation.arguments)


def hurry_stop(unit: Unit, vm: Vm) -> int | None:
    """Take from a stop that is under way what is left of the guest's time. Returns its id; None if there is none."""
    operation = unit.session.scalar(
        select(Operation).where(
            Operation.vm_id == vm.id, Operation.kind == OperationKind.STOP, Operation.state.in_(OPEN_OPERATION)
        )
    )
    if operation is None:
        return None
    operation.arguments = {**operation.arguments, "grace_s": 0.0}
    return operation.id


def is_hurried(context: Context, operation_id: int) -> bool:
    """Whether a stop is to wait for its guest no longer."""
    with context.database.read() as session:
        return not session.get_one(Operation, operation_id).arguments["grace_s"]


def end_operation(
    unit: Unit,
    operation_id: int,
    state: OperationState,
    problems: tuple[Problem, ...] = (),
    *,
    not_taken: bool = False,
) -> None:
    """Write down how an operation ended and wake up who waits for it.

    One that nobody has taken does not end here, unless it may be `not_taken`.
    """
    unit.session.execute(
        update(Operation)
        .where(Operation.id == operation_id, Operation.state.in_(OPEN_OPERATION if not_taken else _TAKEN))
        .values(state=state, problems=[problem.as_dict() for problem in problems], finished_at=now())
    )
    unit.ring(f"operation.{operation_id}")
    make_room(unit)


def await_operation(context: Context, operation_id: int, *, seconds: float = 180.0) -> None:
    """Wait until an operation is over.

    Raises Refused or StepFailed as it ended, NeedsOperator if it is not over in time; it then goes on by itself.
    """
    deadline = steady_s() + seconds
    with context.signals.listen(f"operation.{operation_id}") as bell:
        while steady_s() < deadline:
            with context.database.read() as session:
                operation = session.get_one(Operation, operation_id)
                state, problems, node = operation.state, as_problems(operation.problems), operation.node
                silent = silent_s(node, limit_s=context.settings.node_silent_after_s)
            if state is OperationState.DONE:
                return
            if state is OperationState.REFUSED:
                raise Refused.because(problems)
            if state is OperationState.FAILED:
                raise StepFailed(problems[0].code, problems[0].message, problems[0].hint)
            if silent is not None and state is OperationState.READY:
                _withdraw(context, operation_id, silent_node(node.name, silent))
                continue
            bell.wait(0.5)
    raise NeedsOperator(
        "operation_slow", f"operation {operation_id} is not over after {seconds:.0f} s", "See the logs."
    )


def _withdraw(context: Context, operation_id: int, problem: Problem) -> bool:
    """Take back an operation that nobody has begun."""
    with context.database.write() as session:
        operation = session.get_one(Operation, operation_id, with_for_update=True)
        if operation.state is not OperationState.READY:
            return False
        operation.state, operation.finished_at = OperationState.REFUSED, now()
        operation.problems = [problem.as_dict()]
        half_defined = operation.vm_id if operation.kind is OperationKind.CREATE else None
    if half_defined is not None:
        forget_vm(context, half_defined, keep_operation=operation_id)
    return True


def sweep_operations(context: Context) -> None:
    """Send again what nobody has taken, and end what its worker did not: it died, and the VM must not stay busy."""
    given_up, asked = list[Operation](), context.sightings.moment()
    with context.unit() as unit:
        opened = unit.session.scalars(select(Operation).where(Operation.state.in_(OPEN_OPERATION))).all()
        leases = {each.id: Seen(each.lease_until, _length_s(each)) for each in opened if each.lease_until}
        ended = context.sightings.unchanged("operations", leases, asked=asked)
        for operation in opened:
            if operation.state is OperationState.READY:
                if abs(now() - operation.created_at) > timedelta(seconds=context.settings.reconcile_s):
                    unit.send(_message_for(operation))
            elif operation.id in ended:
                _give_up(unit, operation)
                given_up.append(operation)
        half_defined = _half_defined(given_up)
    _forget(context, half_defined)


def _length_s(operation: Operation) -> float:
    """The length of its lease; a worker of an older version says none."""
    return LONG_S if operation.lease_s is None else operation.lease_s


def take_back_operations(context: Context, node_name: str) -> None:
    """A worker begins, and is the only one of its node: whatever an earlier one had in hand is nobody's now."""
    with context.unit() as unit:
        held = (Node.name == node_name, Operation.state == OperationState.RUNNING)
        given_up = unit.session.scalars(select(Operation).join(Node).where(*held)).all()
        for operation in given_up:
            _give_up(unit, operation)
        half_defined = _half_defined(given_up)
    _forget(context, half_defined)


def _half_defined(given_up: Iterable[Operation]) -> dict[int, int]:
    """The VMs that were not defined to the end, by their operation."""
    creating = (each for each in given_up if each.kind is OperationKind.CREATE)
    return {each.id: each.vm_id for each in creating if each.vm_id is not None}


def _forget(context: Context, half_defined: Mapping[int, int]) -> None:
    """They can be defined again; what was made of their volumes is found then."""
    for operation_id, vm_id in half_defined.items():
        forget_vm(context, vm_id, keep_operation=operation_id)


def _give_up(unit: Unit, operation: Operation) -> None:
    words = f"the worker of {operation.node.name} did not finish `{operation.kind}`"
    problem = Problem("worker_lost", words, "Look at its log, then try again.")
    end_operation(unit, operation.id, OperationState.FAILED, (problem,))


def _message_for(operation: Operation) -> Message:
    return Message(f"haulier.vm.{operation.kind}", f"node.{operation.node.name}", operation.id)
