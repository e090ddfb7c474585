"""A VM as its node's worker needs it, in plain values, and what the worker writes down about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from haulier.definition import VmDefinition
from haulier.definition.storage import Image, StoragePlace
from haulier.services.context import Context
from haulier.services.nodes import place_of
from models import Migration, Operation, PlacementRuleVm, Vm, VmState, Volume, VolumeRole
from models.transitions import AT_WORK, OPEN_OPERATION

# A VM that no migration and no operation is working on: only of such a one may what is seen be believed.
_UNATTENDED = (
    Vm.id.not_in(select(Migration.vm_id).where(Migration.state.in_(AT_WORK))),
    Vm.id.not_in(select(Operation.vm_id).where(Operation.state.in_(OPEN_OPERATION), Operation.vm_id.is_not(None))),
)


@dataclass(frozen=True, slots=True)
class VolumeView:
    """One volume on this node, on the storage `at`; `size_bytes` is unknown until the node has looked at it."""

    id: int
    device: str
    role: VolumeRole
    at: StoragePlace
    path: Path
    format: str
    size_bytes: int | None

    @property
    def image(self) -> Image:
        """The volume as its guest sees it."""
        return self.at.image(self.path, self.format, self.size_bytes)


@dataclass(frozen=True, slots=True)
class VmView:
    """One VM on this node; `facts` are its node's, `filed` the newest migration and operation about it."""

    id: int
    name: str
    node_id: int
    node: str
    epoch: int
    state: VmState
    run_state: str | None
    definition: VmDefinition
    pinned: dict[str, Any]
    volumes: tuple[VolumeView, ...]
    facts: dict[str, Any]
    filed: tuple[int, int]

    @property
    def tpm(self) -> VolumeView | None:
        """The TPM's state volume, if there is one."""
        return next((volume for volume in self.volumes if volume.role is VolumeRole.TPMSTATE), None)


def load_vm(context: Context, vm_id: int) -> VmView:
    """Read a VM with its volumes."""
    with context.database.read() as session:
        return _view(session, session.get_one(Vm, vm_id))


def load_vm_named(context: Context, name: str) -> VmView | None:
    """The same by its name; None if there is none."""
    with context.database.read() as session:
        vm = session.scalar(select(Vm).where(Vm.name == name))
        return _view(session, vm) if vm else None


def _view(session: Session, vm: Vm) -> VmView:
    return VmView(
        id=vm.id,
        name=vm.name,
        node_id=vm.node_id,
        node=vm.node.name,
        epoch=vm.epoch,
        state=vm.state,
        run_state=vm.run_state,
        definition=VmDefinition.from_dict(vm.definition),
        pinned=vm.pinned,
        volumes=tuple(
            VolumeView(
                volume.id,
                volume.device,
                volume.role,
                place_of(volume.storage),
                Path(volume.storage.path) / volume.name,
                volume.format,
                volume.size_bytes,
            )
            for volume in vm.volumes
        ),
        facts=vm.node.facts,
        filed=_filed(session, vm.id),
    )


def _filed(session: Session, vm_id: int) -> tuple[int, int]:
    """The newest migration and operation of a VM, 0 for none: when both are the same, nobody has worked on it since."""
    newest = (select(func.max(kind.id)).where(kind.vm_id == vm_id) for kind in (Migration, Operation))
    first, second = (session.scalar(query) or 0 for query in newest)
    return first, second


def record_sizes(context: Context, vm_id: int, sizes: Mapping[int, int]) -> None:
    """Write down how large the volumes really are; with that the VM is defined."""
    with context.unit() as unit:
        for volume_id, size_bytes in sizes.items():
            unit.session.get_one(Volume, volume_id).size_bytes = size_bytes
        vm = unit.session.get_one(Vm, vm_id)
        unit.note("vm.defined", vm=vm.name, node=vm.node.name)


def forget_vm(context: Context, vm_id: int, *, keep_operation: int) -> None:
    """Remove a VM that could not be defined. Its operation stays until its end is written, on no VM's account."""
    with context.database.write() as session:
        session.execute(delete(Volume).where(Volume.vm_id == vm_id))
        operation = session.get_one(Operation, keep_operation)
        operation.vm_id = None
        session.flush()
        session.execute(delete(Operation).where(Operation.vm_id == vm_id))
        session.execute(delete(PlacementRuleVm).where(PlacementRuleVm.vm_id == vm_id))
        session.execute(delete(Vm).where(Vm.id == vm_id))


def record_state(context: Context, vm_id: int, state: VmState, **values: object) -> None:
    """Write down what the VM does now, with what else changed (`pid`, `qmp`, `pinned`)."""
    with context.unit() as unit:
        vm = unit.session.get_one(Vm, vm_id)
        vm.state = state
        for name, value in values.items():
            setattr(vm, name, value)
        unit.note(f"vm.{state}", vm=vm.name, node=vm.node.name)


def record_observed(context: Context, vm: VmView, state: VmState, **values: object) -> bool:
    """Write down what was seen of a guest, unless it has moved on since it was looked at. Says whether it was written.

    A migration may have begun, and even ended, between the look and this.
    """
    with context.unit() as unit:
        row = unit.session.get_one(Vm, vm.id, with_for_update=True)
        same = (row.state, _filed(unit.session, vm.id)) == (vm.state, vm.filed)
        if not same or unit.session.scalar(select(Vm.id).where(Vm.id == vm.id, *_UNATTENDED)) is None:
            return False
        row.state = state
        for name, value in values.items():
            setattr(row, name, value)
        unit.note(f"vm.{state}", vm=vm.name, node=vm.node)
        return True


def record_ended(context: Context, names: Iterable[str]) -> list[str]:
    """Write down that the QEMUs of these VMs were ended. Returns the names of those that were not stopped already."""
    with context.unit() as unit:
        wanted = select(Vm).where(Vm.name.in_(tuple(names)), Vm.state != VmState.STOPPED).order_by(Vm.name)
        ended = unit.session.scalars(wanted).all()
        for vm in ended:
            vm.state, vm.pid, vm.qmp, vm.run_state = VmState.STOPPED, None, None, None
            unit.note("vm.stopped", vm=vm.name, node=vm.node.name)
        return [vm.name for vm in ended]


def vms_that_should_run(context: Context, node_id: int) -> list[VmView]:
    """The VMs of a node that run as far as the rows know, without those that a migration or operation is working on."""
    with context.database.read() as session:
        running = Vm.state.in_((VmState.RUNNING, VmState.PAUSED))
        found = session.scalars(select(Vm).where(Vm.node_id == node_id, running, *_UNATTENDED)).all()
        return [_view(session, vm) for vm in found]
