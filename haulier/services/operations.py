"""Operations: work on one VM at its node that is no migration.

Filed as a row, taken by compare-and-set, awaited by the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update

from haulier.clock import now
from haulier.errors import NeedsOperator, Problem, Refused, StepFailed
from haulier.planner.refusals import as_problems, silent_node
from haulier.services.context import Context, Message, Unit
from haulier.services.nodes import silent_s
from models import Migration, Node, Operation, OperationKind, OperationState, Vm
from models.transitions import OPEN_MIGRATION

_LEASE = timedelta(minutes=10)


def require_worker(context: Context, node: Node) -> None:
    """Raise Refused `node_silent` unless the node's worker lives."""
    silent = silent_s(node, limit_s=context.settings.node_silent_after_s)
    if silent is not None:
        raise Refused.because((silent_node(node.name, silent),))


def require_free(unit: Unit, vm: Vm) -> None:
    """Raise Refused if a migration or an operation of this VM is open."""
    open_migration = unit.session.scalar(
        select(Migration.id).where(Migration.vm_id == vm.id, Migration.state.in_(OPEN_MIGRATION))
    )
    if open_migration is not None:
        raise Refused(
            "migration_open",
            f"VM {vm.name} is in migration {open_migration}",
            f"haulier migration show {open_migration}",
        )
    busy = unit.session.scalar(
        select(Operation.kind).where(
            Operation.vm_id == vm.id, Operation.state.in_((OperationState.READY, OperationState.RUNNING))
        )
    )
    if busy is not None:
        raise Refused("operation_open", f"VM {vm.name} is busy: {busy} is not over", "Wait for it.")


def file_operation(unit: Unit, vm: Vm, kind: OperationKind, **arguments: object) -> Operation:
    """File an operation and its message."""
    operation = Operation(vm_id=vm.id, node_id=vm.node_id, kind=kind, arguments=arguments, created_at=now())
    unit.session.add(operation)
    unit.session.flush()
    unit.send(Message(f"haulier.vm.{kind}", f"node.{vm.node.name}", operation.id))
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
        taken = session.execute(
            update(Operation)
            .where(Operation.id == operation_id, Operation.state == OperationState.READY)
            .values(state=OperationState.RUNNING, lease_until=now() + _LEASE)
        )
        if taken.rowcount != 1:  # type: ignore[attr-defined]  # an UPDATE's result has it
            return None
        operation = session.get_one(Operation, operation_id)
        if operation.vm is None:
            return None
        return Order(operation.id, operation.vm.id, operation.vm.name, operation.arguments)


def end_operation(unit: Unit, operation_id: int, state: OperationState, problems: tuple[Problem, ...] = ()) -> None:
    """Write down how an operation ended and wake up who waits for it."""
    unit.session.execute(
        update(Operation)
        .where(Operation.id == operation_id, Operation.state == OperationState.RUNNING)
        .values(state=state, problems=[problem.as_dict() for problem in problems], finished_at=now())
    )
    unit.ring(f"operation.{operation_id}")


def await_operation(context: Context, operation_id: int, *, seconds: float = 180.0) -> None:
    """Wait until an operation is over.

    Raises Refused or StepFailed as it ended, NeedsOperator if it is not over in time; it then goes on by itself.
    """
    deadline = now() + timedelta(seconds=seconds)
    with context.signals.listen(f"operation.{operation_id}") as bell:
        while now() < deadline:
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
            if silent is not None and state is OperationState.READY and _withdraw(context, operation_id):
                raise Refused.because((silent_node(node.name, silent),))
            bell.wait(0.5)
    raise NeedsOperator(
        "operation_slow", f"operation {operation_id} is not over after {seconds:.0f} s", "See the logs."
    )


def _withdraw(context: Context, operation_id: int) -> bool:
    """Take back an operation that nobody has begun."""
    with context.database.write() as session:
        taken = session.execute(
            update(Operation)
            .where(Operation.id == operation_id, Operation.state == OperationState.READY)
            .values(state=OperationState.FAILED, finished_at=now())
        )
        return bool(taken.rowcount == 1)  # type: ignore[attr-defined]
