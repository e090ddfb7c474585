"""Who runs the guest: the one compare-and-set that a migration exists for.

Whoever wins it may let the guest run. The target wins by `hand_over`, the source by the move to `rolling_back`
(chain.py); both ask for a migration that is still `running`, so that only one of them can win.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Delete, Insert, Update, bindparam, delete, insert, or_, select, update

from haulier.clock import now
from haulier.definition.sections import Place, moved
from haulier.services.attempts import AttemptView, TransferView
from haulier.services.claims import Claim, lock_attempt
from haulier.services.context import Context
from haulier.services.nodes import place_named
from models import (
    Allocation,
    Attempt,
    Base,
    LedgerRole,
    Locality,
    Migration,
    MigrationState,
    Phase,
    StepState,
    Vm,
    VmState,
    VolumeTransfer,
)

_STEP, _MIGRATION, _VM, _VOLUME, _LEDGER, _EVENT = (
    Base.metadata.tables[name] for name in ("step", "migration", "vm", "volume", "tpm_ledger", "event")
)


@dataclass(frozen=True, slots=True)
class NewHome:
    """The QEMU that has the guest on the target once the hand-over is committed; none for a VM that does not run."""

    pid: int | None = None
    qmp: str | None = None


class HandOver:
    """The change of owner: one transaction with the migration, the VM and its epoch, its volumes, the ledger.

    It runs while the guest is paused. So its statements are built before, below the ORM, and `rehearse` runs all of
    them once and takes them back: in the pause nothing is left to be compiled, and no page to be read. Nobody is called
    before the guest runs; `record_settled` does that.
    """

    def __init__(self, context: Context, held: Claim, view: AttemptView, home: NewHome) -> None:
        self._database = context.database
        self._keep = timedelta(seconds=context.settings.tpm_quarantine_s)
        self._attempt_id = held.attempt_id
        self._still_ours = select(_STEP.c.id).where(
            _STEP.c.id == held.step_id, _STEP.c.fence == held.fence, _STEP.c.state == StepState.RUNNING
        )
        self._decision = tuple(_decision(view, home))
        self._consequences = tuple(_consequences(view))

    def rehearse(self) -> None:
        """Do all of it and take it back."""
        with self._database.write() as session:
            self._take(session.connection(), digest=None)
            session.rollback()

    def commit(self, digest: str | None) -> bool:
        """Give the guest to the target; `digest` is that of the TPM's state there. True if the guest may run there now.

        False if it is not the target's to take any more: it is being undone, or somebody has asked for that. Nothing
        was changed then.
        """
        with self._database.write() as session:
            taken = self._take(session.connection(), digest=digest)
            if not taken:
                session.rollback()
            return taken

    def _take(self, connection: Connection, *, digest: str | None) -> bool:
        # As by every other decision about this attempt: who looks after us sees what we have done.
        lock_attempt(connection, self._attempt_id)
        if connection.scalar(self._still_ours) is None:
            return False
        if not all(connection.execute(change).rowcount == 1 for change in self._decision):
            return False
        moment = now()
        found = {"moment": moment, "kept_until": moment + self._keep, "found_digest": digest}
        for consequence in self._consequences:
            connection.execute(consequence.change, {name: found[name] for name in consequence.needs})
        return True


@dataclass(frozen=True, slots=True)
class _Consequence:
    """A statement, and the names of the values that are known only in the pause."""

    change: Update | Insert | Delete
    needs: tuple[str, ...] = ()


def _decision(view: AttemptView, home: NewHome) -> Iterator[Update]:
    """What must hold for the target to win.

    The migration was still running and nobody has asked to cancel it; the VM was at its epoch on the source.
    """
    running = (_MIGRATION.c.id == view.migration_id, _MIGRATION.c.state == MigrationState.RUNNING)
    wanted = _MIGRATION.c.cancel_asked.is_(False)
    yield update(_MIGRATION).where(*running, wanted).values(state=MigrationState.HANDED_OVER)
    here = (_VM.c.id == view.vm_id, _VM.c.epoch == view.epoch, _VM.c.node_id == view.source.id)
    there = {"node_id": view.target.id, "epoch": view.epoch + 1, "pid": home.pid, "qmp": home.qmp}
    state = view.vm_state if view.offline else VmState.PAUSED
    definition = moved(view.definition, dict(_moves(view)), formats=dict(_new_formats(view)))
    names = {} if definition == view.definition else {"definition": definition.as_dict()}
    yield update(_VM).where(*here).values(state=state, **names, **there)


def _moves(view: AttemptView) -> Iterator[tuple[Place, Place]]:
    for transfer in view.transfers:
        yield (
            place_named(transfer.source_storage, transfer.source_name),
            place_named(transfer.target_storage, transfer.final_name),
        )


def _new_formats(view: AttemptView) -> Iterator[tuple[Place, str]]:
    for transfer in view.transfers:
        if transfer.format != transfer.target_format:
            yield place_named(transfer.source_storage, transfer.source_name), transfer.target_format


def _consequences(view: AttemptView) -> Iterator[_Consequence]:
    """What follows from it. The source's TPM copy is quarantined before the target's becomes active: SQL allows one."""
    for transfer in view.transfers:
        locality = Locality.SHARED if transfer.target_shared else Locality.LOCAL
        place = {"storage_id": transfer.target_storage_id, "name": transfer.final_name, "locality": locality}
        form = transfer.target_format
        yield _Consequence(update(_VOLUME).where(_VOLUME.c.id == transfer.volume_id).values(**place, format=form))
    if view.tpm is not None:
        yield from _ledger_changes(view, view.tpm)
    event = {"kind": "migration.handed_over", "vm": view.vm, "node": view.target.name, "migration": view.migration_id}
    told = insert(_EVENT).values(at=bindparam("moment"), data={"epoch": view.epoch + 1}, **event)
    yield _Consequence(told, ("moment",))


def _ledger_changes(view: AttemptView, tpm: TransferView) -> Iterator[_Consequence]:
    active = (_LEDGER.c.vm_id == view.vm_id, _LEDGER.c.role == LedgerRole.ACTIVE)
    if tpm.stays:
        # The same file, by the target's path.
        place = {"node_id": view.target.id, "path": str(tpm.target_path), "epoch": view.epoch + 1}
        seen: dict[str, Any] = {"digest": bindparam("found_digest"), "changed_at": bindparam("moment")}
        yield _Consequence(update(_LEDGER).where(*active).values(**place, **seen), ("found_digest", "moment"))
        return
    yield _Consequence(
        update(_LEDGER)
        .where(*active)
        .values(role=LedgerRole.QUARANTINED, keep_until=bindparam("kept_until"), changed_at=bindparam("moment")),
        ("kept_until", "moment"),
    )
    reserved = (_LEDGER.c.vm_id == view.vm_id, _LEDGER.c.role == LedgerRole.RESERVED)
    there = (_LEDGER.c.node_id == view.target.id, _LEDGER.c.path == str(tpm.target_path))
    if view.offline and view.tpm_identity is None:
        # The VM has never been started: there is no TPM yet that could be recorded.
        yield _Consequence(delete(_LEDGER).where(*reserved, *there))
        return
    yield _Consequence(
        update(_LEDGER)
        .where(*reserved, *there)
        .values(
            role=LedgerRole.ACTIVE,
            epoch=view.epoch + 1,
            digest=bindparam("found_digest"),
            identity=view.tpm_identity,
            swtpm_version=view.target.facts.get("swtpm_version"),
            libtpms_version=view.target.facts.get("libtpms_version"),
            changed_at=bindparam("moment"),
        ),
        ("found_digest", "moment"),
    )


def record_settled(
    context: Context, view: AttemptView, *, state: VmState | None, downtime_ms: float | None = None
) -> None:
    """After the hand-over: the VM's state, None where it is as it was, and the length of the pause.

    What was promised to the attempt is the VM's now, but for overlays that are yet to be merged.
    """
    overlays = [str(transfer.target_path) for transfer in view.transfers if transfer.base_path]
    with context.unit() as unit:
        session = unit.session
        # Locked as by every other decision about this attempt.
        attempt = session.get_one(Attempt, view.attempt_id, with_for_update=True)
        step = next(step for step in attempt.steps if step.phase is Phase.HAND_OVER)
        step.notes = {**step.notes, "settled": True}
        vm = session.get_one(Vm, view.vm_id)
        if state is not None:
            vm.state, vm.run_state = state, None
        if state is VmState.LOST:
            vm.pid, vm.qmp = None, None
            unit.note("vm.lost", vm=view.vm, node=view.target.name, migration=view.migration_id)
        if downtime_ms is not None:
            session.get_one(Migration, view.migration_id).downtime_ms = downtime_ms
        session.execute(
            update(Allocation)
            .where(
                Allocation.attempt_id == view.attempt_id,
                Allocation.node_id == view.target.id,
                Allocation.freed_at.is_(None),
                or_(Allocation.path.is_(None), Allocation.path.not_in(overlays)),
            )
            .values(freed_at=now())
        )
        unit.ring(f"migration.{view.migration_id}", "events", taken_topic(view.attempt_id))


def taken_topic(attempt_id: int) -> str:
    """What is rung when the guest has been taken over."""
    return f"attempt.{attempt_id}.taken"


def record_proof(
    context: Context, transfer_id: int, *, digest: str, identity_source: str, identity_target: str
) -> None:
    """Keep the proof beside the transfer it is about: the hand-over was committed on one digest for both sides."""
    with context.database.write() as session:
        session.execute(
            update(VolumeTransfer)
            .where(VolumeTransfer.id == transfer_id)
            .values(
                digest_source=digest,
                digest_target=digest,
                identity_source=identity_source,
                identity_target=identity_target,
            )
        )
