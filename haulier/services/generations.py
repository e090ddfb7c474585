"""Syncs: how a new generation of a VM's volumes is planned and filed, and how it becomes the replica's.

A replica of a disk is a file of the disk's own format, the base. A sync writes into an overlay over it. The generation
is taken by one transaction, from which on base and overlay together are the replica; then the overlay is merged into
the base, which may be done again after any death. Other volumes are files of their own, which take each other's place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.definition import Role
from haulier.definition.storage import StorageKind
from haulier.errors import Refused
from haulier.planner.methods import Choice, Method, VolumeFacts, choose_sync_method
from haulier.planner.refusals import STARTED, MissingStorage, refuse_filing
from haulier.services.allocations import put_away
from haulier.services.attempts import AttemptView, TransferView
from haulier.services.chain import held_step, start_attempt
from haulier.services.claims import Claim
from haulier.services.context import Context, Unit
from haulier.services.filing import Terms, Wanted, filing_facts, write_migration
from haulier.services.ledger import TpmCopy, find_row
from haulier.services.moves import move_migration
from haulier.services.replicas import paths_of
from haulier.services.transfers import Names, TargetPlace, add_transfer, made_by, overlay_name, snapshot_devices
from models import (
    Allocation,
    Attempt,
    Migration,
    MigrationState,
    Replica,
    Replication,
    Storage,
    Volume,
)


@dataclass(frozen=True, slots=True)
class _Sending:
    """One volume on its way to its replica: `replica` is the one that there is, `storage` None if there is no room."""

    volume: Volume
    choice: Choice
    storage: Storage | None
    replica: Replica | None


def file_sync(context: Context, unit: Unit, replication: Replication) -> Migration:
    """File the sync of the next generation. Raises Refused with all reasons; nothing is written then."""
    vm, target = replication.vm, replication.target
    terms = Terms(offline=vm.state not in STARTED)
    sendings = _plan(unit.session, replication)
    missing = sorted({each.volume.storage.name for each in sendings if each.storage is None})
    facts = dataclasses.replace(
        filing_facts(context, unit.session, vm, target, offline=terms.offline),
        choices=tuple(each.choice for each in sendings),
        missing_storages=tuple(MissingStorage(name) for name in missing),
    )
    if problems := refuse_filing(facts):
        raise Refused.because(problems)
    if not sendings:
        raise Refused("nothing_to_replicate", f"VM {vm.name} has no volume of its node alone", "haulier vm show")
    attempt = start_attempt(unit, write_migration(context, unit, Wanted(vm, target, terms), replication=replication))
    replication.due_at = None
    _file_transfers(unit.session, attempt, sendings)
    return attempt.migration


def _plan(session: Session, replication: Replication) -> list[_Sending]:
    storages = {storage.name: storage for storage in replication.target.storages}
    replicas = {replica.volume_id: replica for replica in replication.replicas}
    in_snapshots = snapshot_devices(replication.vm)
    planned = []
    for volume in replication.vm.volumes:
        replica = replicas.get(volume.id)
        storage = replica.storage if replica else storages.get(volume.storage.name)
        facts = VolumeFacts(
            volume.device,
            Role(volume.role),
            shared=volume.storage.shared,
            snapshot_only=volume.device in in_snapshots,
            target_kind=StorageKind(storage.kind) if storage else StorageKind.FOLDER,
        )
        if (choice := choose_sync_method(facts)) is not None:
            planned.append(_Sending(volume, choice, storage, replica))
    return planned


def _file_transfers(session: Session, attempt: Attempt, sendings: Iterable[_Sending]) -> None:
    names = Names(session)
    for each in sendings:
        if each.storage is None:
            raise Refused("storage_missing", f"{each.volume.device}: the target has no such storage", "haulier vm show")
        base, wanted = None, made_by(each.volume.name, attempt.migration_id)
        if each.choice.method is Method.DELTA:
            known = each.replica and each.replica.name
            base = known or names.take(each.storage, each.volume.name)
            wanted = overlay_name(base, attempt.migration_id)
        name = names.take(each.storage, wanted)
        to = TargetPlace(each.storage, name, each.volume.format, base)
        add_transfer(session, attempt, each.volume, each.choice, to=to)


def newest_generation(context: Context, replication_id: int) -> int:
    """The generation that the replica holds; 0 for none yet."""
    with context.database.read() as session:
        return session.get_one(Replication, replication_id).generation


def live_replications(context: Context, vm_id: int) -> list[int]:
    """The VM's replications that somebody wants: bitmaps of others are nobody's."""
    with context.database.read() as session:
        live = select(Replication.id).where(Replication.vm_id == vm_id, Replication.ended_at.is_(None))
        return list(session.scalars(live))


@dataclass(frozen=True, slots=True)
class Arrived:
    """What is known of a generation that has arrived whole.

    `at` is its moment in seconds since 1970; `seen` is what the files that are copied whole looked like, by device.
    """

    generation: int
    at: float
    digest: str | None
    identity: str | None
    seen: dict[str, dict[str, int]]


def commit_generation(context: Context, held: Claim, view: AttemptView, arrived: Arrived) -> bool:
    """Make the generation the replica's, of all volumes in one transaction.

    False if it is being undone, or is to be; nothing was changed then.
    """
    with context.unit() as unit:
        step = held_step(unit.session, held)
        migration = unit.session.get_one(Migration, view.migration_id)
        replication = unit.session.get_one(Replication, view.replication_id, with_for_update=True)
        given_up = migration.cancel_asked or replication.ended_at is not None
        if step is None or migration.state is not MigrationState.RUNNING or given_up:
            return False
        if not move_migration(unit, migration, MigrationState.HANDED_OVER):
            return False
        moment = datetime.fromtimestamp(arrived.at, UTC)
        replication.generation, replication.synced_at, replication.failures = arrived.generation, moment, 0
        replication.problem = None
        for transfer in view.transfers:
            _take(unit.session, view, replication, transfer, arrived)
        _drop_others(unit.session, view, replication)
        unit.note(
            "replication.generation",
            vm=view.vm,
            node=view.target.name,
            generation=arrived.generation,
            at=moment.isoformat(),
        )
        return True


def _drop_others(session: Session, view: AttemptView, replication: Replication) -> None:
    """A volume that lies on a shared storage by now needs no replica any more."""
    sent = {transfer.volume_id for transfer in view.transfers}
    for replica in replication.replicas:
        if replica.volume_id not in sent:
            for path in paths_of(replica):
                put_away(session, view.attempt_id, view.target.id, path)
            session.delete(replica)


def _take(
    session: Session, view: AttemptView, replication: Replication, transfer: TransferView, arrived: Arrived
) -> None:
    place = {"volume_id": transfer.volume_id, "storage_id": transfer.target_storage_id}
    replica = session.scalar(select(Replica).filter_by(replication_id=replication.id, **place))
    if replica is None:
        replica = Replica(replication_id=replication.id, **place, name="")
        session.add(replica)
    replica.generation = arrived.generation
    replica.synced_at = datetime.fromtimestamp(arrived.at, UTC)
    if transfer.device in view.unchanged:
        return
    if transfer.base_path is not None:
        replica.name, replica.overlay = transfer.final_name, transfer.target_name
    else:
        if replica.name:
            put_away(session, view.attempt_id, view.target.id, transfer.target_at.folder / replica.name)
        replica.name, replica.seen = transfer.target_name, arrived.seen.get(transfer.device)
    if view.tpm is not None and transfer.id == view.tpm.id:
        row = find_row(session, TpmCopy(view.vm_id, view.target.id, transfer.target_path))
        if row is not None:
            row.digest, row.identity, row.changed_at = arrived.digest, arrived.identity, now()
    # What was made for the attempt is the replica's now.
    made = [str(path) for path in (transfer.target_path, transfer.base_path) if path]
    session.execute(
        update(Allocation)
        .where(Allocation.attempt_id == view.attempt_id, Allocation.path.in_(made), Allocation.freed_at.is_(None))
        .values(freed_at=now())
    )
