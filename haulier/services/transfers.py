"""Where the volumes of a migration go: the method by the planner's table, the storage by the wish of whoever files it,
a name that is free there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.definition import Role, VmDefinition, sections
from haulier.errors import Refused
from haulier.planner.methods import KEEPS_NAME, Choice, Method, VolumeFacts, choose_method
from haulier.services.context import Unit
from models import (
    Attempt,
    LedgerRole,
    Node,
    Replica,
    Storage,
    TpmLedger,
    TransferMethod,
    Vm,
    Volume,
    VolumeTransfer,
)


def read_storage_map(words: Iterable[str]) -> dict[str, str]:
    """The storage on the target by that on the source, of words such as `fast:slow`. Raises Refused for other words."""
    found: dict[str, str] = {}
    for word in words:
        source, _, target = word.partition(":")
        if not source or not target or ":" in target:
            raise Refused(
                "bad_storage_map", f"{word!r} maps no storage", "Write SOURCE:TARGET, for example local:fast."
            )
        if found.setdefault(source, target) != target:
            raise Refused(
                "bad_storage_map", f"{source} is mapped to {found[source]} and to {target}", "Once is enough."
            )
    return found


@dataclass(frozen=True, slots=True)
class Crossing:
    """One volume on its way, as planned; `storage` is None if the target has none of the name `to`.

    One that `stays` is a file that both nodes see. `name_is_taken`: it must keep its name, and somebody else's volume
    has that on the target. `replica` is the older copy of it that is there already.
    """

    volume: Volume
    choice: Choice
    to: str
    storage: Storage | None
    stays: bool
    name_is_taken: bool
    replica: Replica | None = None


def plan_crossings(
    session: Session, vm: Vm, target: Node, *, offline: bool, storage_map: Mapping[str, str]
) -> tuple[Crossing, ...]:
    """How each volume of a VM would cross, in the order of the volumes. Touches nothing."""
    replicas = {
        (replica.volume_id, replica.storage_id): replica
        for replica in session.scalars(
            select(Replica).join(Storage).join(Volume, Replica.volume_id == Volume.id)
            .where(Volume.vm_id == vm.id, Storage.node_id == target.id, Replica.overlay.is_(None))
        )
    }  # fmt: skip
    storages = {storage.name: storage for storage in target.storages}
    in_snapshots = {
        spec.device
        for spec in VmDefinition.from_dict(vm.definition).volumes
        if spec.section not in (None, sections.PENDING)
    }
    crossings = []
    for volume in vm.volumes:
        to = storage_map.get(volume.storage.name, volume.storage.name)
        storage = storages.get(to)
        replica = replicas.get((volume.id, storage.id)) if storage else None
        stays = volume.storage.shared and to == volume.storage.name and storage is not None and storage.shared
        facts = VolumeFacts(
            device=volume.device,
            role=Role(volume.role),
            shared=stays,
            replica_on_target=replica is not None,
            offline=offline,
            snapshot_only=volume.device in in_snapshots,
        )
        keeps = facts.role in KEEPS_NAME and not stays
        taken = keeps and storage is not None and volume.name in _others(session, storage)
        crossings.append(Crossing(volume, choose_method(facts), to, storage, stays, taken, replica))
    return tuple(crossings)


def file_transfers(unit: Unit, attempt: Attempt, crossings: Iterable[Crossing]) -> None:
    """Write down the transfers of an attempt. Raises Refused for a crossing without a storage."""
    given: set[tuple[int, str]] = set()
    for crossing in crossings:
        volume, storage = crossing.volume, crossing.storage
        if storage is None:
            raise Refused("storage_missing", f"the target has no storage {crossing.to}", "Look at `haulier explain`.")
        base, wanted = None, volume.name
        if crossing.replica is not None and crossing.choice.method is Method.DELTA:
            base = crossing.replica.name
            wanted = f"{base}.m{attempt.migration_id}"
        if crossing.stays:
            name = volume.name
        else:
            here = {name for at, name in given if at == storage.id}
            name = free_name(unit.session, storage, wanted, given=here)
        given.add((storage.id, name))
        unit.session.add(
            VolumeTransfer(
                attempt_id=attempt.id,
                volume_id=volume.id,
                role=volume.role,
                method=TransferMethod(crossing.choice.method),
                reason=crossing.choice.reason,
                source_storage_id=volume.storage_id,
                source_name=volume.name,
                target_storage_id=storage.id,
                target_name=name,
                base_name=base,
                bytes_total=volume.size_bytes or 0,
            )
        )


def free_name(session: Session, storage: Storage, name: str, *, given: set[str]) -> str:
    """The wanted name, or one beside it where a replica, another VM, a quarantined state or another volume of this
    migration has that already.
    """
    replicas = session.execute(select(Replica.name, Replica.overlay).where(Replica.storage_id == storage.id))
    taken = {*given, *(each for row in replicas for each in row if each), *_others(session, storage)}
    path, number = Path(name), 0
    while name in taken:
        number += 1
        name = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
    return name


def _others(session: Session, storage: Storage) -> set[str]:
    """The names on a storage that VMs' volumes and states of TPMs have."""
    kept = (TpmLedger.node_id == storage.node_id, TpmLedger.role != LedgerRole.DESTROYED)
    states = (Path(path) for path in session.scalars(select(TpmLedger.path).where(*kept)))
    return {
        *session.scalars(select(Volume.name).where(Volume.storage_id == storage.id)),
        *(str(path.relative_to(storage.path)) for path in states if path.is_relative_to(storage.path)),
    }
