"""What the rows say of VMs whose programs a node's worker finds on its host, and what it writes down of them."""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from haulier.planner.recovery import ProgramFinding
from haulier.services.context import Context
from models import Migration, Node, Operation, Vm, VmState
from models.transitions import AT_WORK, OPEN_OPERATION


def find_program(context: Context, node_id: int, name: str, *, epoch: int | None) -> ProgramFinding:
    """What the rows say of a VM whose programs run on the node.

    `epoch` is the one under which a QEMU among them was given the guest; None if there is no such QEMU.
    """
    with context.database.read() as session:
        vm = session.scalar(select(Vm).where(Vm.name == name))
        return ProgramFinding(
            known=vm is not None,
            attended=vm is not None and _is_attended(session, node_id, vm.id),
            lives_here=vm is not None and vm.node_id == node_id,
            should_run=vm is not None and vm.state in (VmState.RUNNING, VmState.PAUSED),
            has_guest=epoch is not None,
            outdated=vm is not None and epoch is not None and epoch < vm.epoch,
        )


def _is_attended(session: Session, node_id: int, vm_id: int) -> bool:
    """Whether an open migration from or to the node, or an open operation on it, works on the VM."""
    here = or_(Migration.source_id == node_id, Migration.target_id == node_id)
    moving = select(Migration.id).where(Migration.vm_id == vm_id, here, Migration.state.in_(AT_WORK))
    worked_on = select(Operation.id).where(
        Operation.vm_id == vm_id, Operation.node_id == node_id, Operation.state.in_(OPEN_OPERATION)
    )
    return any(session.scalar(query.limit(1)) is not None for query in (moving, worked_on))


def note_program(context: Context, node_id: int, kind: str, *, vm: str, programs: list[str]) -> None:
    """Tell everybody what was found, or done about it."""
    with context.unit() as unit:
        node = unit.session.get_one(Node, node_id)
        unit.note(kind, vm=vm, node=node.name, programs=programs)
