"""Replicas as they lie on their node: overlays that are to be merged, files that are replicas no more, what becomes of
them when the VM itself comes to live there, or when nobody wants them any longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.definition.storage import StoragePlace
from haulier.services.allocations import OLD_FILE, free_allocations, put_away
from haulier.services.attempts import AttemptView, TransferView, Turn, is_wanted
from haulier.services.context import Context, Unit
from haulier.services.ledger import TpmCopy, find_row, move_copy
from haulier.services.nodes import place_of
from models import (
    Allocation,
    AllocationKind,
    LedgerRole,
    Replica,
    Replication,
    TransferMethod,
    Volume,
    VolumeRole,
)

# What a file is told by from the one that it was.
Looks = dict[str, int]


@dataclass(frozen=True, slots=True)
class Overlay:
    """An overlay that is to be merged into its base."""

    replica_id: int
    name: str
    base: Path
    at: StoragePlace

    @property
    def path(self) -> Path:
        return self.at.folder / self.name


def overlays_of(context: Context, replication_id: int) -> list[Overlay]:
    """The overlays of a replication that are still there."""
    with context.database.read() as session:
        wanted = (Replica.replication_id == replication_id, Replica.overlay.is_not(None))
        return [_overlay(replica) for replica in session.scalars(select(Replica).where(*wanted).order_by(Replica.id))]


def _overlay(replica: Replica) -> Overlay:
    at = place_of(replica.storage)
    return Overlay(replica.id, str(replica.overlay), at.folder / replica.name, at)


def record_merged(context: Context, overlay: Overlay) -> None:
    """The base alone is the replica again, and the overlay's file is gone. Safe to call twice."""
    with context.database.write() as session:
        replica = session.get(Replica, overlay.replica_id)
        if replica is not None and replica.overlay == overlay.name:
            replica.overlay = None


def old_files(context: Context, view: AttemptView) -> list[Path]:
    """Files of the target that are no replica's any more and are to go."""
    with context.database.read() as session:
        paths = session.scalars(
            select(Allocation.path).where(
                Allocation.attempt_id == view.attempt_id,
                # A node that was lost may have left files of the same names.
                Allocation.node_id == view.target.id,
                Allocation.purpose == OLD_FILE,
                Allocation.freed_at.is_(None),
            )
        )
        return [Path(path) for path in paths if path]


def record_gone(context: Context, view: AttemptView, path: Path) -> None:
    """Such a file has gone. Safe to call twice."""
    free_allocations(context, view.attempt_id, kind=AllocationKind.VOLUME, path=path, node_id=view.target.id)


def paths_of(replica: Replica) -> tuple[Path, ...]:
    """The files of a replica: its own, then the overlay over it, if there is one."""
    return tuple(Path(replica.storage.path) / name for name in (replica.name, replica.overlay) if name)


@dataclass(frozen=True, slots=True)
class ReplicaFiles:
    """One volume's replica: its files as in `paths_of`, and their storage. A TPM's state `is_secret`."""

    id: int
    at: StoragePlace
    paths: tuple[Path, ...]
    is_secret: bool


def replicas_of(context: Context, replication_id: int) -> list[ReplicaFiles]:
    """The replicas of a replication."""
    with context.database.read() as session:
        replication = session.get_one(Replication, replication_id)
        return [
            ReplicaFiles(
                replica.id,
                place_of(replica.storage),
                paths_of(replica),
                replica.volume.role is VolumeRole.TPMSTATE,
            )
            for replica in replication.replicas
        ]


def record_dropped(context: Context, replica_id: int) -> None:
    """A replica's files are gone; so is its row, and that of its TPM state. Safe to call twice."""
    with context.database.write() as session:
        replica = session.get(Replica, replica_id)
        if replica is None:
            return
        storage = replica.storage
        copy = TpmCopy(replica.volume.vm_id, storage.node_id, Path(storage.path) / replica.name)
        move_copy(session, copy, LedgerRole.DESTROYED)
        session.delete(replica)


def drop_rows(unit: Unit, replication: Replication) -> None:
    """Forget a replica whose node is lost; its files lie there, and the event names them."""
    left = [str(path) for replica in replication.replicas for path in paths_of(replica)]
    for replica in list(replication.replicas):
        own, *_ = paths_of(replica)
        move_copy(unit.session, TpmCopy(replication.vm_id, replica.storage.node_id, own), LedgerRole.DESTROYED)
        unit.session.delete(replica)
    replication.every_s, replication.due_at, replication.ended_at = None, None, now()
    unit.note("replication.ended", vm=replication.vm.name, node=replication.target.name, left=left)


def record_ended(context: Context, replication_id: int) -> None:
    """There is nothing left of a replication."""
    with context.unit() as unit:
        _end(unit, unit.session.get_one(Replication, replication_id))


def _end(unit: Unit, replication: Replication) -> None:
    replication.ended_at = now()
    unit.note("replication.ended", vm=replication.vm.name, node=replication.target.name)


def turn_round(context: Context, view: AttemptView) -> None:
    """The VM lives now where its replica was: what of that is not the VM's own now goes, and from now on a replica is
    kept where the VM was. Safe to call twice.

    One that is kept there already stays as it is.
    """
    own = {transfer.final_path for transfer in view.transfers}
    with context.unit() as unit:
        session = unit.session
        replication = _replication_to(session, view, view.target.id)
        if replication is None:
            return
        if not is_wanted(replication.every_s, replication.generation):
            _end(unit, replication)
            return
        for replica in replication.replicas:
            for path in paths_of(replica):
                if path not in own:
                    put_away(session, view.attempt_id, view.target.id, path)
            session.delete(replica)
        if _replication_to(session, view, view.source.id) is None:
            replication.target_id, replication.synced_at, replication.failures = view.source.id, None, 0
            replication.problem = None
            replication.due_at = now()
            unit.note("replication.turned_round", vm=view.vm, node=view.source.name)


def adopt_source(
    context: Context, view: AttemptView, turn: Turn, *, tpm: TpmCopy | None, at: float, looks: Mapping[str, Looks]
) -> None:
    """What the VM has left on the source is its replica now, all of one moment: the pause, `at` seconds since 1970.

    Safe to call twice. `tpm` is the copy of the TPM's state for it; it is recorded with what the hand-over has proved.
    `looks` are those of the target's files that were copied, by device: as long as they look so, the replica holds what
    they hold.
    """
    with context.unit() as unit:
        session = unit.session
        replication = session.get_one(Replication, turn.replication_id)
        if replication.generation >= turn.generation:
            return
        moment = datetime.fromtimestamp(at, UTC)
        replication.generation, replication.synced_at = turn.generation, moment
        replication.due_at = now() + timedelta(seconds=replication.every_s) if replication.every_s else None
        for transfer in left_behind(view):
            volume = session.get_one(Volume, transfer.volume_id)
            name = str(tpm.path.relative_to(transfer.source_at.folder)) if tpm and _is_tpm(view, transfer) else None
            session.add(
                Replica(
                    replication_id=replication.id,
                    volume_id=volume.id,
                    storage_id=transfer.source_storage_id,
                    name=name or transfer.source_name,
                    generation=turn.generation,
                    synced_at=moment,
                    seen=looks.get(transfer.device),
                )
            )
        row = find_row(session, tpm) if tpm else None
        if row is not None and view.tpm is not None:
            row.digest, row.identity, row.changed_at = view.tpm.digest_source, view.tpm_identity, now()
        unit.note("replication.generation", vm=view.vm, node=view.source.name, generation=turn.generation)


def left_behind(view: AttemptView) -> list[TransferView]:
    """The volumes of which the source still has a file of its own that is worth a replica: not those that lie on a
    shared storage by now. None if one was a device, or has another format now: a replica is a file of its volume's.
    """
    left = [
        each for each in view.transfers if not (each.stays or each.target_shared or each.method is TransferMethod.NONE)
    ]
    are_alike = all(each.source_at.facts.has_files and each.format == each.target_format for each in left)
    return left if are_alike else []


def _is_tpm(view: AttemptView, transfer: TransferView) -> bool:
    return view.tpm is not None and transfer.id == view.tpm.id


def _replication_to(session: Session, view: AttemptView, node_id: int) -> Replication | None:
    return session.scalar(
        select(Replication).where(
            Replication.vm_id == view.vm_id, Replication.target_id == node_id, Replication.ended_at.is_(None)
        )
    )
