"""What there is where volumes are to cross: the VMs' volumes and replicas, the targets' storages, the names there.

Read once for however many VMs: how many statements that takes does not depend on how many there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.definition import Role
from haulier.planner.methods import KEEPS_NAME
from models import LedgerRole, Node, Replica, Storage, TpmLedger, Vm, Volume


@dataclass(frozen=True, slots=True)
class PlacedReplica:
    """A replica and the node that it is on."""

    replica: Replica
    node_id: int
    node: str


@dataclass(frozen=True, slots=True)
class GivenNames:
    """The names that VMs' volumes and states of TPMs have on some nodes. Thick and thin volumes of one group are in one
    place, so it is the path that counts, and not the storage.
    """

    volumes: Mapping[tuple[int, str], Collection[str]]
    states: Mapping[int, Sequence[Path]]

    def on(self, storage: Storage) -> set[str]:
        """Those on a storage."""
        states = self.states.get(storage.node_id, ())
        return {
            *self.volumes.get((storage.node_id, storage.path), ()),
            *(str(path.relative_to(storage.path)) for path in states if path.is_relative_to(storage.path)),
        }


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Volumes by the ids of their VMs, replicas by those of their volumes, storages by those of their nodes. The names
    are known only where one of the volumes must keep its own.
    """

    volumes: Mapping[int, Sequence[Volume]]
    replicas: Mapping[int, Sequence[PlacedReplica]]
    storages: Mapping[int, Sequence[Storage]]
    names: GivenNames


def look_around(session: Session, vms: Collection[Vm], targets: Collection[Node]) -> Surroundings:
    """Read what there is of these VMs and on these nodes."""
    ids, nodes = {vm.id for vm in vms}, {node.id for node in targets}
    # Those of the sources too: each volume finds its own among them then.
    storages = _storages(session, nodes | {vm.node_id for vm in vms})
    volumes: dict[int, list[Volume]] = defaultdict(list)
    for volume in session.scalars(select(Volume).where(Volume.vm_id.in_(ids)).order_by(Volume.id)):
        volumes[volume.vm_id].append(volume)
    keeps = any(Role(volume.role) in KEEPS_NAME for each in volumes.values() for volume in each)
    names = given_names(session, nodes) if keeps else GivenNames({}, {})
    return Surroundings(volumes, _replicas(session, ids), storages, names)


def _storages(session: Session, nodes: Collection[int]) -> Mapping[int, Sequence[Storage]]:
    found: dict[int, list[Storage]] = defaultdict(list)
    for storage in session.scalars(select(Storage).where(Storage.node_id.in_(nodes))):
        found[storage.node_id].append(storage)
    return found


def _replicas(session: Session, vms: Collection[int]) -> Mapping[int, Sequence[PlacedReplica]]:
    query = (
        select(Replica, Storage.node_id, Node.name)
        .join(Storage, Storage.id == Replica.storage_id)
        .join(Node, Node.id == Storage.node_id)
        .join(Volume, Volume.id == Replica.volume_id)
        .where(Volume.vm_id.in_(vms))
    )
    found: dict[int, list[PlacedReplica]] = defaultdict(list)
    for replica, node_id, node in session.execute(query):
        found[replica.volume_id].append(PlacedReplica(replica, node_id, node))
    return found


def given_names(session: Session, nodes: Collection[int]) -> GivenNames:
    """The names on these nodes."""
    volumes: dict[tuple[int, str], list[str]] = defaultdict(list)
    query = select(Storage.node_id, Storage.path, Volume.name).join(Volume, Volume.storage_id == Storage.id)
    for node_id, path, name in session.execute(query.where(Storage.node_id.in_(nodes))):
        volumes[node_id, path].append(name)
    states: dict[int, list[Path]] = defaultdict(list)
    kept = (TpmLedger.node_id.in_(nodes), TpmLedger.role != LedgerRole.DESTROYED)
    for node_id, path in session.execute(select(TpmLedger.node_id, TpmLedger.path).where(*kept)):
        states[node_id].append(Path(path))
    return GivenNames(volumes, states)
