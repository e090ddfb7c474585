"""VMs: defined from a file, started, stopped and shown. The work on the node is an operation (tasks/vm.py)."""

from __future__ import annotations

import dataclasses
import re
import secrets
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, or_, select
from sqlalchemy.orm import Session, joinedload, selectinload

from haulier.clock import now
from haulier.definition import Nic, Role, VmDefinition, VolumeSpec
from haulier.definition.files import read_definition, read_storages
from haulier.definition.proxmox_values import usual_size
from haulier.definition.storage import KINDS, StorageKind, StoragePlace, name_on, problem_of_place
from haulier.definition.storage_cfg import StorageSpec
from haulier.errors import Refused
from haulier.planner.refusals import refuse_host_access
from haulier.services.consent import leave_off
from haulier.services.context import Context, Unit
from haulier.services.liveness import silent_s
from haulier.services.lookup import find_node, find_vm
from haulier.services.nodes import HOST_FILES, LOCAL_STORAGE, ensure_storage
from haulier.services.operations import (
    LONG_S,
    await_operation,
    file_operation,
    hurry_stop,
    require_free,
    require_not_emptied,
    require_worker,
)
from haulier.services.stopped import is_to_be_started
from haulier.services.waiting import tell_evacuations
from haulier.services.way import make_way
from haulier.settings import LONGEST_S, NAME
from models import (
    EvacuationPolicy,
    Locality,
    Node,
    OperationKind,
    Replica,
    Storage,
    TpmLedger,
    Vm,
    VmState,
    Volume,
    VolumeRole,
)
from models.enums import LedgerRole

_SECTOR = 512


def define_vm(
    context: Context,
    file: Path,
    *,
    node: str,
    name: str | None = None,
    storages: Path | None = None,
    host_access: bool = False,
) -> dict[str, Any]:
    """Take a VM's file over: rows for it and its volumes, and what is missing of the volumes is made on the node.

    `host_access` is the permission to reach past the VM's own storages into the host: `args`, files and devices of the
    host, storages of one's own. Give it to the host's administrator only: whoever has it can read any file there.

    Raises Refused for anything wrong with the file, the names or the volumes; then no row and no file was left behind.
    """
    definition = read_definition(file)
    if not host_access and (problems := refuse_host_access(definition, own_storages=storages is not None)):
        raise Refused.because(problems)
    chosen = name or definition.name
    if chosen is None:
        raise Refused("vm_without_name", f"{file} does not name the VM", "Give --name NAME.")
    if not NAME.fullmatch(chosen):
        raise Refused("bad_name", f"{chosen!r} is no name for a VM", "Letters, digits, dot, dash and underscore.")
    if devices := [key for key, value in definition.ignored.items() if _is_host_device(key, value)]:
        raise Refused("host_device", f"{', '.join(devices)}: devices of the host are not supported", "Take them out.")
    specs = _read_storages(storages)
    definition = pin_addresses(dataclasses.replace(definition, name=chosen))
    with context.unit() as unit:
        host = find_node(unit.session, node)
        require_worker(context, host)
        require_not_emptied(host)
        if unit.session.scalar(select(Vm.id).where(Vm.name == chosen)) is not None:
            raise Refused("vm_exists", f"there is a VM {chosen} already", f"haulier vm show {chosen}")
        storages_of = {
            spec.device: _storage(unit.session, host, spec, specs)
            for spec in definition.volumes
            if not spec.is_empty_drive
        }
        definition = _place_volumes(definition, storages_of)
        vm = Vm(name=chosen, node_id=host.id, node=host, definition=definition.as_dict(), created_at=now())
        unit.session.add(vm)
        unit.session.flush()
        for spec in definition.volumes:
            if spec.device in storages_of:
                unit.session.add(_volume(unit.session, vm, storages_of[spec.device], spec))
        unit.session.flush()
        operation = file_operation(unit, vm, OperationKind.CREATE)
    await_operation(context, operation.id, seconds=LONG_S)
    return show_vm(context, chosen) | {"ignored": definition.ignored}


def _is_host_device(key: str, value: str) -> bool:
    return re.fullmatch(r"hostpci\d+", key) is not None or (
        re.fullmatch(r"usb\d+", key) is not None and "host" in value
    )


def pin_addresses(definition: VmDefinition) -> VmDefinition:
    """Give the VM a UUID and each card a MAC where its owner wrote none: they must be the same wherever it runs."""
    return dataclasses.replace(
        definition,
        uuid=definition.uuid or str(uuid.uuid4()),
        nics=tuple(nic if nic.mac else _with_mac(nic) for nic in definition.nics),
    )


def _place_volumes(definition: VmDefinition, storages: Mapping[str, Storage]) -> VmDefinition:
    """Make each volume's line fit the storage that it names."""
    return dataclasses.replace(
        definition,
        volumes=tuple(
            _placed(spec, StorageKind(storages[spec.device].kind), str(definition.name))
            if spec.device in storages
            else spec
            for spec in definition.volumes
        ),
    )


def _placed(spec: VolumeSpec, kind: StorageKind, vm: str) -> VolumeSpec:
    """One that is to be made gets a name where its owner wrote none: it may be moved, and must be found."""
    form = spec.format
    name = spec.name or name_on(kind, f"{vm}/{spec.device}.{form}", form=form, vm=vm)
    size_bytes = spec.size_bytes
    if spec.role is Role.EFIDISK and not KINDS[kind].has_files:
        # What PVE writes there is the size of the device, which LVM has rounded up; firmware knows its own alone.
        size_bytes = usual_size(spec.role, spec.options)
    # QEMU counts in sectors.
    whole = size_bytes and -(-size_bytes // _SECTOR) * _SECTOR
    return dataclasses.replace(spec, name=name, size_bytes=whole)


def _with_mac(nic: Nic) -> Nic:
    # 52:54:00 is the prefix that QEMU's users know; it has the bit for locally administered addresses.
    return dataclasses.replace(nic, mac=":".join(["52:54:00", *(f"{byte:02X}" for byte in secrets.token_bytes(3))]))


def _read_storages(path: Path | None) -> dict[str, StorageSpec]:
    found = read_storages(path) if path else ()
    return {spec.name: spec for spec in found if not spec.is_disabled}


def _volume(session: Session, vm: Vm, storage: Storage, spec: VolumeSpec) -> Volume:
    name = str(spec.name)
    if problem := problem_of_place(StorageKind(storage.kind), name, form=spec.format):
        raise Refused(problem.code, f"{spec.device}: {problem.message}", problem.hint)
    taken = session.scalar(
        select(Vm.name).join(Volume).join(Storage, Volume.storage_id == Storage.id)
        .where(_same_place(storage), Volume.name == name, Volume.role != "cdrom")
    )  # fmt: skip
    quarantined = session.scalar(
        select(TpmLedger.id).where(
            TpmLedger.node_id == storage.node_id,
            TpmLedger.path == str(Path(storage.path) / name),
            TpmLedger.role != LedgerRole.DESTROYED,
        )
    )
    if quarantined is not None:
        raise Refused(
            "tpm_state_quarantined",
            f"{spec.device}: {name} is a TPM state that was handed over",
            "It starts nowhere again.",
        )
    replica = session.scalar(
        select(Replica.id).where(Replica.storage_id == storage.id, or_(Replica.name == name, Replica.overlay == name))
    )
    if replica is not None:
        raise Refused("volume_owned", f"{spec.device}: {name} on {storage.name} is a replica", "One owner each.")
    if taken is not None and spec.role is not Role.CDROM:
        whose = "another device of this VM" if taken == vm.name else f"VM {taken}"
        raise Refused("volume_owned", f"{spec.device}: {name} on {storage.name} belongs to {whose}", "One owner each.")
    return Volume(
        vm_id=vm.id,
        device=spec.device,
        role=VolumeRole(spec.role),
        storage_id=storage.id,
        name=name,
        format=spec.format,
        size_bytes=spec.size_bytes,
        locality=Locality.SHARED if storage.shared else Locality.LOCAL,
    )


def _same_place(storage: Storage) -> ColumnElement[bool]:
    """The rows that mean this storage: of a shared one each node has its own."""
    if storage.shared:
        return and_(Storage.name == storage.name, Storage.shared)
    return Storage.id == storage.id


def _storage(session: Session, node: Node, spec: VolumeSpec, storages: dict[str, StorageSpec]) -> Storage:
    """The row of the storage that a volume names; a file by its absolute path lies on the node's storage of such."""
    if spec.storage is None:
        return ensure_storage(session, node, HOST_FILES, StoragePlace(StorageKind.FOLDER, Path("/")))
    if spec.storage == HOST_FILES:
        # Its folder is the host's root: by its name a file of the host would be no file of the host.
        raise Refused("reserved_storage", f"{spec.device}: {HOST_FILES} is no storage to name", "Write the path alone.")
    known = session.scalar(select(Storage).where(Storage.node_id == node.id, Storage.name == spec.storage))
    described = storages.get(spec.storage)
    if described is None or spec.storage == LOCAL_STORAGE:
        if known is not None:
            return known
        raise Refused(
            "unknown_storage",
            f"{spec.device}: node {node.name} has no storage {spec.storage}",
            "Give its storage.cfg with --storages.",
        )
    site = described.place()
    if not described.is_on(node.name):
        raise Refused("storage_elsewhere", f"storage {spec.storage} is not on node {node.name}", "See its `nodes`.")
    if described.shared:
        _share(session, described, site)
    return ensure_storage(session, node, spec.storage, site, shared=described.shared)


def _share(session: Session, described: StorageSpec, site: StoragePlace) -> None:
    """A storage that is shared is one of every node that it is not kept from; what a node has already stays."""
    known = set(session.scalars(select(Storage.node_id).where(Storage.name == described.name)))
    for node in session.scalars(select(Node).where(Node.id.not_in(known))):
        if described.is_on(node.name):
            ensure_storage(session, node, described.name, site, shared=True)


def start_vm(context: Context, name: str) -> dict[str, Any]:
    """Start a VM on its node and wait until it runs. Raises Refused, or StepFailed with QEMU's words."""
    make_way(context, name)
    with context.unit() as unit:
        vm = find_vm(unit.session, name, lock=True)
        if not is_to_be_started(unit.session, vm):
            require_not_emptied(vm.node)
        if vm.state in (VmState.RUNNING, VmState.PAUSED):
            hint = f"haulier vm show {name}" if vm.state is VmState.RUNNING else "`cont` on its QMP socket lets it run."
            raise Refused("vm_running", f"VM {name} is started already, and {vm.state}", hint)
        operation = _file_on_node(context, unit, vm, OperationKind.START)
    await_operation(context, operation)
    return show_vm(context, name)


def stop_vm(context: Context, name: str, *, now_: bool, grace_s: float) -> dict[str, Any]:
    """Ask the guest to power off, and end it when it has not within `grace_s`.

    With `now_` it is ended at once, also when it is being asked already. One that is off because it was stopped for its
    move is left off: it is not started again.

    Raises Refused for a time that is none; nothing is written then.
    """
    if not 0 <= grace_s <= LONGEST_S:
        hint = f"Give seconds, at most {LONGEST_S:.0f}; --now waits for nothing."
        raise Refused("bad_grace", f"{grace_s:g} s is no time to wait", hint)
    if leave_off(context, name):
        return show_vm(context, name)
    make_way(context, name)
    with context.unit() as unit:
        vm = find_vm(unit.session, name, lock=True)
        if vm.state is VmState.STOPPED:
            raise Refused("vm_stopped", f"VM {name} is stopped already", f"haulier vm show {name}")
        operation = hurry_stop(unit, vm) if now_ else None
        if operation is not None:
            require_worker(context, vm.node)
        else:
            operation = _file_on_node(context, unit, vm, OperationKind.STOP, grace_s=0.0 if now_ else grace_s)
    await_operation(context, operation, seconds=grace_s + 60)
    return show_vm(context, name)


def _file_on_node(context: Context, unit: Unit, vm: Vm, kind: OperationKind, **arguments: Any) -> int:  # noqa: ANN401 - as the row has them
    require_free(unit, vm)
    require_worker(context, vm.node)
    return file_operation(unit, vm, kind, **arguments).id


def set_policy(context: Context, name: str, policy: EvacuationPolicy) -> dict[str, Any]:
    """Change what may happen to a VM when its node is emptied. Raises Refused for an unknown one."""
    with context.unit() as unit:
        vm = find_vm(unit.session, name)
        vm.evacuation = policy
        unit.note("vm.policy", vm=name, evacuation=policy)
        tell_evacuations(unit, vm.node_id)
    return show_vm(context, name)


def list_vms(context: Context, *, after: str = "", limit: int | None = None) -> list[dict[str, Any]]:
    """All VMs as contract.md shows them, by name: those that come after this one, and no more than so many."""
    loaded = (joinedload(Vm.node), selectinload(Vm.volumes).joinedload(Volume.storage))
    query = select(Vm).where(Vm.name > after).order_by(Vm.name).limit(limit)
    with context.database.read() as session:
        tpms = _tpms(session, query.with_only_columns(Vm.id))
        return [_document(context, vm, tpms.get(vm.id)) for vm in session.scalars(query.options(*loaded))]


def show_vm(context: Context, name: str) -> dict[str, Any]:
    """One VM as contract.md shows it. Raises Refused for an unknown one."""
    with context.database.read() as session:
        vm = find_vm(session, name)
        return _document(context, vm, _tpms(session, select(Vm.id).where(Vm.id == vm.id)).get(vm.id))


def _tpms(session: Session, vms: Select[int]) -> dict[int, TpmLedger]:
    """The states that the TPMs of these VMs have now."""
    active = (TpmLedger.vm_id.in_(vms), TpmLedger.role == LedgerRole.ACTIVE)
    return {row.vm_id: row for row in session.scalars(select(TpmLedger).where(*active))}


def _document(context: Context, vm: Vm, tpm: TpmLedger | None) -> dict[str, Any]:
    silent = silent_s(vm.node, limit_s=context.settings.node_silent_after_s) is not None
    return {
        "name": vm.name,
        "node": vm.node.name,
        "worker": "silent" if silent else "alive",
        "state": vm.state,
        "run_state": vm.run_state if vm.state is VmState.PAUSED else None,
        "epoch": vm.epoch,
        "evacuation": vm.evacuation,
        "volumes": [
            {
                "device": volume.device,
                "role": volume.role,
                "storage": volume.storage.name,
                "path": str(Path(volume.storage.path) / volume.name),
                "format": volume.format,
                "size_bytes": volume.size_bytes,
            }
            for volume in vm.volumes
        ],
        "tpm": tpm and {"identity": tpm.identity, "digest": tpm.digest, "epoch": tpm.epoch},
        "pinned": vm.pinned,
        "qmp": vm.qmp,
        "pid": vm.pid,
    }
