"""A VM whose node is lost is started from its replica: what is asked first, and the one transaction that decides it.

The VM's epoch grows with it: the lost node, should it come back, finds that its guest is outdated, and ends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.definition import VmDefinition
from haulier.definition.sections import Place, moved
from haulier.definition.storage import StoragePlace
from haulier.errors import Refused
from haulier.planner.refusals import RecoveryFacts, refuse_recovery
from haulier.services.context import Context
from haulier.services.filing import filing_facts
from haulier.services.ledger import TpmCopy, find_row
from haulier.services.liveness import silent_s
from haulier.services.lookup import find_node, find_vm
from haulier.services.nodes import place_named, place_of
from haulier.services.operations import await_operation, file_operation
from haulier.services.replicas import paths_of
from haulier.services.vms import show_vm
from haulier.services.way import make_way
from models import (
    LedgerRole,
    Locality,
    Node,
    NodeState,
    Operation,
    OperationKind,
    OperationState,
    Replica,
    Replication,
    Storage,
    TpmLedger,
    Vm,
    VmState,
    Volume,
    VolumeRole,
)


def recover_vm(context: Context, name: str, *, on: str) -> dict[str, Any]:
    """Start a VM from the last whole generation of its replica on a node, and wait until it runs.

    Raises Refused with all reasons, above all if its own node has not been declared lost, and when the replica is not
    what was recorded: nothing was changed then. StepFailed when the VM is recovered but does not start.
    """
    make_way(context, name)
    with context.unit() as unit:
        vm, node = find_vm(unit.session, name, lock=True), find_node(unit.session, on)
        if problems := refuse_recovery(_facts(context, unit.session, vm, node)):
            raise Refused.because(problems)
        operation = file_operation(unit, vm, OperationKind.RECOVER, node=node)
    await_operation(context, operation.id)
    return show_vm(context, name)


def _facts(context: Context, session: Session, vm: Vm, on: Node) -> RecoveryFacts:
    known = filing_facts(context, session, vm, on, offline=True)
    replicas = _replicas(session, vm, on)
    shared = {storage.name for storage in on.storages if storage.shared}
    return RecoveryFacts(
        vm=vm.name,
        vm_node=vm.node.name,
        node_state=vm.node.state,
        on=on.name,
        on_state=on.state,
        on_silent_s=known.target_silent_s,
        open_migration=known.open_migration,
        open_operation=known.open_operation,
        replicated=bool(replicas),
        without_replica=tuple(each.device for each in vm.volumes if _has_one(each) and each.id not in replicas),
        generations=tuple(replica.generation for replica in replicas.values()),
        local_images=tuple(each.device for each in vm.volumes if _is_local_image(each)),
        missing_storages=tuple(sorted({each.storage.name for each in vm.volumes if each.storage.shared} - shared)),
    )


def _has_one(volume: Volume) -> bool:
    return not volume.storage.shared and volume.role is not VolumeRole.CDROM


def _is_local_image(volume: Volume) -> bool:
    return volume.role is VolumeRole.CDROM and not volume.storage.shared


def _replicas(session: Session, vm: Vm, on: Node) -> dict[int, Replica]:
    rows = session.scalars(
        select(Replica)
        .join(Replication, Replica.replication_id == Replication.id)
        .where(Replication.vm_id == vm.id, Replication.target_id == on.id, Replication.ended_at.is_(None))
    )
    return {replica.volume_id: replica for replica in rows}


@dataclass(frozen=True, slots=True)
class WholeReplica:
    """A VM's replica as its node's worker must find it; `digest` and `identity` are those of its TPM."""

    replication_id: int
    paths: tuple[tuple[Path, StoragePlace], ...]
    tpm: Path | None
    digest: str | None
    identity: str | None


def load_replica(context: Context, vm_id: int, node_id: int) -> WholeReplica:
    """What is recorded of the VM's replica on a node: each file with its storage."""
    with context.database.read() as session:
        replicas = list(_replicas(session, session.get_one(Vm, vm_id), session.get_one(Node, node_id)).values())
        paths = tuple((_path(each), place_of(each.storage)) for each in replicas)
        tpm = next((_path(each) for each in replicas if each.volume.role is VolumeRole.TPMSTATE), None)
        row = find_row(session, TpmCopy(vm_id, node_id, tpm)) if tpm else None
        replication_id = replicas[0].replication_id if replicas else 0
        return WholeReplica(replication_id, paths, tpm, row.digest if row else None, row.identity if row else None)


def _path(replica: Replica) -> Path:
    return paths_of(replica)[0]


def take_over(context: Context, vm_id: int, node_id: int, *, operation_id: int) -> None:
    """Make the replica the VM, in one transaction, under a new epoch. It does not run yet.

    Raises Refused when it cannot be any more, because the lost node is back, or the replica is not whole; nothing was
    changed then.
    """
    with context.unit() as unit:
        session = unit.session
        vm = session.get_one(Vm, vm_id, with_for_update=True)
        left = session.get_one(Node, vm.node_id, with_for_update=True)
        node = session.get_one(Node, node_id)
        if session.get_one(Operation, operation_id).state is not OperationState.RUNNING:
            raise Refused("given_up", "the recovery was given up", f"haulier vm show {vm.name}")
        back = silent_s(left, limit_s=context.settings.node_silent_after_s) is None
        if left.state is not NodeState.LOST or back:
            raise Refused("node_not_lost", f"node {left.name} is back", f"haulier vm show {vm.name}")
        replicas = _replicas(session, vm, node)
        lacking = any(_has_one(each) and each.id not in replicas for each in vm.volumes)
        if lacking or any(each.overlay for each in replicas.values()):
            raise Refused("replica_incomplete", "the replica is not whole any more", "haulier replication list")
        generation = max((each.generation for each in replicas.values()), default=0)
        vm.node_id, vm.epoch, vm.state = node_id, vm.epoch + 1, VmState.STOPPED
        vm.pid, vm.qmp, vm.run_state = None, None, None
        places = dict(_move(session, node, each, replicas.get(each.id)) for each in vm.volumes)
        vm.definition = moved(VmDefinition.from_dict(vm.definition), places).as_dict()
        _take_tpm(session, vm, node, replicas)
        for replica in replicas.values():
            replication = replica.replication
            replication.every_s, replication.due_at, replication.ended_at = None, None, now()
            session.delete(replica)
        unit.note("vm.recovered", vm=vm.name, node=node.name, lost=left.name, generation=generation, epoch=vm.epoch)


def _move(session: Session, node: Node, volume: Volume, replica: Replica | None) -> tuple[Place, Place]:
    """The volume's row names the replica's file from now on; what is shared is found by its storage's name."""
    before = place_named(volume.storage.name, volume.name)
    if replica is not None:
        volume.storage_id, volume.name, volume.locality = replica.storage_id, replica.name, Locality.LOCAL
        return before, place_named(replica.storage.name, replica.name)
    here = session.scalar(select(Storage).where(Storage.node_id == node.id, Storage.name == volume.storage.name))
    if here is not None:
        volume.storage_id = here.id
    return before, before


def _take_tpm(session: Session, vm: Vm, node: Node, replicas: dict[int, Replica]) -> None:
    """The copy on the lost node can never be attached again, and is kept for ever: nobody knows what was in it last."""
    tpm = next((each for each in vm.volumes if each.role is VolumeRole.TPMSTATE), None)
    if tpm is None:
        return
    active = session.scalar(select(TpmLedger).where(TpmLedger.vm_id == vm.id, TpmLedger.role == LedgerRole.ACTIVE))
    replica = replicas.get(tpm.id)
    if replica is None:
        # The same file, by this node's path.
        if active is not None:
            session.flush()
            session.refresh(tpm)
            path = str(Path(tpm.storage.path) / tpm.name)
            active.node_id, active.path, active.epoch, active.changed_at = node.id, path, vm.epoch, now()
        return
    if active is not None:
        active.role, active.keep_until, active.changed_at = LedgerRole.QUARANTINED, None, now()
        session.flush()
    row = find_row(session, TpmCopy(vm.id, node.id, _path(replica)))
    if row is not None and row.identity is not None:
        row.role, row.epoch, row.changed_at = LedgerRole.ACTIVE, vm.epoch, now()
    elif row is not None:
        # The VM has never been started: there is no TPM yet that could be recorded.
        session.delete(row)
