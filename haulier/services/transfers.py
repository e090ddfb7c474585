"""Where the volumes of a migration go: the method by the planner's table, the storage by the wish of whoever files it,
a name that is free there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.definition import Role, VmDefinition, sections
from haulier.definition.storage import StorageKind, format_on, name_on, problem_of_place
from haulier.errors import Problem, Refused
from haulier.planner.methods import KEEPS_NAME, Choice, Method, VolumeFacts, choose_method
from haulier.services.context import Unit
from haulier.services.surroundings import PlacedReplica, Surroundings, given_names
from models import (
    Attempt,
    Node,
    Replica,
    Storage,
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
    there: Surroundings, vm: Vm, target: Node, *, offline: bool, storage_map: Mapping[str, str]
) -> tuple[Crossing, ...]:
    """How each volume of a VM would cross, in the order of the volumes. Touches nothing."""
    storages = {storage.name: storage for storage in there.storages[target.id]}
    in_snapshots = snapshot_devices(vm)
    crossings = []
    for volume in there.volumes[vm.id]:
        to = storage_map.get(volume.storage.name, volume.storage.name)
        storage = storages.get(to)
        kind = StorageKind(storage.kind) if storage else StorageKind.FOLDER
        replicas = there.replicas[volume.id]
        replica = next((each.replica for each in replicas if storage and _is_usable(each.replica, storage)), None)
        stays = volume.storage.shared and to == volume.storage.name and storage is not None and storage.shared
        facts = VolumeFacts(
            device=volume.device,
            role=Role(volume.role),
            shared=stays,
            replica_on_target=replica is not None,
            offline=offline,
            snapshot_only=volume.device in in_snapshots,
            format=volume.format,
            source_kind=StorageKind(volume.storage.kind),
            target_kind=kind,
        )
        keeps = facts.role in KEEPS_NAME and not stays
        name = name_on(kind, volume.name, form=facts.target_format, vm=vm.name)
        taken = keeps and storage is not None and name in there.names.on(storage)
        choice = choose_method(facts)
        problem = problem_of_place(kind, name, form=facts.target_format) or _replica_elsewhere(facts, replicas, target)
        if problem:
            choice = replace(choice, refusal=choice.refusal or problem)
        crossings.append(Crossing(volume, choice, to, storage, stays, taken, replica))
    return tuple(crossings)


def _is_usable(replica: Replica, storage: Storage) -> bool:
    return replica.storage_id == storage.id and replica.overlay is None


def _replica_elsewhere(facts: VolumeFacts, replicas: Iterable[PlacedReplica], target: Node) -> Problem | None:
    """A replica on a third node keeps its format, and so must its volume."""
    if facts.target_format == facts.format:
        return None
    others = {each.node for each in replicas if each.node_id != target.id}
    if not others:
        return None
    words = (
        f"{facts.device} would become {facts.target_format}, and its replica on {', '.join(sorted(others))} would not"
    )
    return Problem("replica_has_other_format", words, "End that replication first, and begin it anew afterwards.")


def snapshot_devices(vm: Vm) -> set[str]:
    """The devices that a snapshot of the VM refers to, and the VM as it is now does not."""
    volumes = VmDefinition.from_dict(vm.definition).volumes
    return {spec.device for spec in volumes if spec.section not in (None, sections.PENDING)}


def file_transfers(unit: Unit, attempt: Attempt, crossings: Iterable[Crossing]) -> None:
    """Write down the transfers of an attempt. Raises Refused for a crossing without a storage."""
    names = Names(unit.session)
    for crossing in crossings:
        volume, storage = crossing.volume, crossing.storage
        if storage is None:
            raise Refused("storage_missing", f"the target has no storage {crossing.to}", "Look at `haulier explain`.")
        kind = StorageKind(storage.kind)
        form = format_on(kind, volume.format)
        base, wanted = None, name_on(kind, volume.name, form=form, vm=volume.vm.name)
        if crossing.replica is not None and crossing.choice.method is Method.DELTA:
            base = crossing.replica.name
            wanted = overlay_name(base, attempt.migration_id)
        name = names.keep(storage, volume.name) if crossing.stays else names.take(storage, wanted)
        to = TargetPlace(storage, name, form, base)
        add_transfer(unit.session, attempt, volume, crossing.choice, to=to)


@dataclass(frozen=True, slots=True)
class TargetPlace:
    """Where a volume goes: a storage, a name in it, the format that it has there; with a `base` it is an overlay over
    that.
    """

    storage: Storage
    name: str
    format: str
    base: str | None = None


def add_transfer(session: Session, attempt: Attempt, volume: Volume, choice: Choice, *, to: TargetPlace) -> None:
    """Write down how one volume crosses, and both its places."""
    session.add(
        VolumeTransfer(
            attempt_id=attempt.id,
            volume_id=volume.id,
            role=volume.role,
            method=TransferMethod(choice.method),
            reason=choice.reason,
            source_storage_id=volume.storage_id,
            source_name=volume.name,
            target_storage_id=to.storage.id,
            target_name=to.name,
            base_name=to.base,
            target_format=to.format,
            bytes_total=volume.size_bytes or 0,
        )
    )


def overlay_name(base: str, migration_id: int) -> str:
    """What an overlay over a replica's file is called: no two are called the same, whatever an earlier one has left."""
    return f"{base}.m{migration_id}"


def made_by(name: str, migration_id: int) -> str:
    """The same of a file of its own that a sync or a migration makes for a replica, after the volume's name."""
    path = Path(name)
    # One that was a replica's itself has a number already.
    stem = re.sub(r"\.m\d+$", "", path.stem)
    return str(path.with_name(f"{stem}.m{migration_id}{path.suffix}"))


class Names:
    """The names on storages, looked at once, and those that are given to a migration's volumes one after the other."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._taken: dict[tuple[int, str], set[str]] = {}

    def take(self, storage: Storage, name: str) -> str:
        """The wanted name, or one beside it where a replica, another VM, a quarantined state or another volume of this
        migration has that already.
        """
        taken = self._taken_on(storage)
        path, number = Path(name), 0
        while name in taken:
            number += 1
            name = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        taken.add(name)
        return name

    def keep(self, storage: Storage, name: str) -> str:
        """The name of a volume that is there already, which no other one may get."""
        self._taken_on(storage).add(name)
        return name

    def _taken_on(self, storage: Storage) -> set[str]:
        # Thick and thin volumes of one group are in one place.
        place = (storage.node_id, storage.path)
        if place not in self._taken:
            self._taken[place] = self._load(storage)
        return self._taken[place]

    def _load(self, storage: Storage) -> set[str]:
        replicas = self._session.execute(
            select(Replica.name, Replica.overlay)
            .join(Storage, Replica.storage_id == Storage.id)
            .where(Storage.node_id == storage.node_id, Storage.path == storage.path)
        )
        names = given_names(self._session, [storage.node_id])
        return {*(each for row in replicas for each in row if each), *names.on(storage)}
