"""Who runs the guest: the one compare-and-set that a migration exists for.

Whoever wins it may let the guest run. The target wins by `hand_over`, the source by the move to `rolling_back`
(chain.py); both ask for a migration that is still `running`, so that only one of them can win.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Update, delete, select, update
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.services.attempts import AttemptView
from haulier.services.chain import Claim
from haulier.services.context import Context, Unit
from models import (
    Allocation,
    AllocationKind,
    Attempt,
    LedgerRole,
    Migration,
    MigrationState,
    Replica,
    Step,
    StepState,
    Storage,
    TpmLedger,
    Vm,
    VmState,
    Volume,
    VolumeTransfer,
)


@dataclass(frozen=True, slots=True)
class NewHome:
    """What is true of the VM on the target once the hand-over is committed."""

    pid: int
    qmp: str
    digest: str | None


def commit_hand_over(context: Context, held: Claim, view: AttemptView, home: NewHome) -> bool:
    """Give the guest to the target. True if it may run there now; False if the migration is not the target's to take
    any more.

    One transaction: the migration, the VM with its epoch, its volumes, the ledger. It runs while the guest is paused,
    so it is short, and nobody is called before the guest runs: `record_settled` does that.
    """
    with context.database.write() as session:
        return _take(session, held, view, home, keep_s=context.settings.tpm_quarantine_s)


def rehearse_hand_over(context: Context, held: Claim, view: AttemptView) -> None:
    """Do the same before the pause and take it back, so that in the pause all statements are compiled and all pages
    read.
    """
    with context.database.write() as session:
        _take(session, held, view, NewHome(pid=0, qmp="", digest=None), keep_s=0)
        session.flush()
        session.rollback()


def _take(session: Session, held: Claim, view: AttemptView, home: NewHome, *, keep_s: float) -> bool:
    # Locked as by every other decision about this attempt (chain.py): who looks after us sees what we have done.
    session.execute(select(Attempt.id).where(Attempt.id == held.attempt_id).with_for_update())
    still_ours = select(Step.id).where(
        Step.id == held.step_id, Step.fence == held.fence, Step.state == StepState.RUNNING
    )
    if session.scalar(still_ours) is None or not all(_changed(session, change) for change in _decision(view, home)):
        session.rollback()
        return False
    for change in _consequences(view, home, keep_s=keep_s):
        _changed(session, change)
    Unit(session).note(
        "migration.handed_over",
        vm=view.vm,
        node=view.target.name,
        migration=view.migration_id,
        epoch=view.epoch + 1,
    )
    return True


def _changed(session: Session, change: Update) -> bool:
    """Run one UPDATE and say whether it met a row. No object in the session is looked for: the guest is paused."""
    done = session.execute(change, execution_options={"synchronize_session": False})
    return bool(done.rowcount == 1)  # type: ignore[attr-defined]  # an UPDATE's result has it


def _decision(view: AttemptView, home: NewHome) -> Iterator[Update]:
    """What must hold for the target to win: the migration was still running, the VM at its epoch on the source."""
    yield (
        update(Migration)
        .where(Migration.id == view.migration_id, Migration.state == MigrationState.RUNNING)
        .values(state=MigrationState.HANDED_OVER)
    )
    yield (
        update(Vm)
        .where(Vm.id == view.vm_id, Vm.epoch == view.epoch, Vm.node_id == view.source.id)
        .values(node_id=view.target.id, epoch=view.epoch + 1, pid=home.pid, qmp=home.qmp, state=VmState.PAUSED)
    )


def _consequences(view: AttemptView, home: NewHome, *, keep_s: float) -> Iterator[Update]:
    """What follows from it. The source's TPM copy is quarantined before the target's becomes active: SQL allows one."""
    for transfer in view.transfers:
        yield (
            update(Volume)
            .where(Volume.id == transfer.volume_id)
            .values(storage_id=transfer.target_storage_id, name=transfer.target_name)
        )
    if view.tpm is None:
        return
    moment = now()
    ours = (TpmLedger.vm_id == view.vm_id,)
    yield (
        update(TpmLedger)
        .where(*ours, TpmLedger.role == LedgerRole.ACTIVE)
        .values(role=LedgerRole.QUARANTINED, keep_until=moment + timedelta(seconds=keep_s), changed_at=moment)
    )
    yield (
        update(TpmLedger)
        .where(
            *ours,
            TpmLedger.node_id == view.target.id,
            TpmLedger.path == str(view.tpm.target_path),
            TpmLedger.role == LedgerRole.RESERVED,
        )
        .values(
            role=LedgerRole.ACTIVE,
            epoch=view.epoch + 1,
            digest=home.digest,
            identity=view.tpm_identity,
            swtpm_version=view.target.facts.get("swtpm_version"),
            libtpms_version=view.target.facts.get("libtpms_version"),
            changed_at=moment,
        )
    )


def record_settled(context: Context, view: AttemptView, *, state: VmState, downtime_ms: float | None = None) -> None:
    """After the hand-over: the VM's state, the length of the pause.

    What was promised to the attempt is the VM's now.
    """
    with context.unit() as unit:
        session = unit.session
        vm = session.get_one(Vm, view.vm_id)
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
            )
            .values(freed_at=now())
        )
        unit.ring(f"migration.{view.migration_id}", "events", taken_topic(view.attempt_id))


def taken_topic(attempt_id: int) -> str:
    """What is rung when the guest has been taken over."""
    return f"attempt.{attempt_id}.taken"


def old_replicas(context: Context, view: AttemptView) -> tuple[Path, ...]:
    """Replicas that lie on the node where the VM lives now are no help to anybody: their rows go, their files are to
    go.

    The files are written down as this attempt's allocations first, so that they are found again if we end right here.
    """
    with context.database.write() as session:
        rows = session.execute(
            select(Replica, Storage)
            .join(Storage, Replica.storage_id == Storage.id)
            .join(Volume, Replica.volume_id == Volume.id)
            .where(Volume.vm_id == view.vm_id, Storage.node_id == view.target.id)
        ).all()
        for replica, storage in rows:
            session.add(
                Allocation(
                    attempt_id=view.attempt_id,
                    node_id=view.target.id,
                    kind=AllocationKind.VOLUME,
                    purpose="old replica",
                    path=str(Path(storage.path) / replica.name),
                    taken_at=now(),
                )
            )
            session.execute(delete(Replica).where(Replica.id == replica.id))
        session.flush()
        paths = session.scalars(
            select(Allocation.path).where(
                Allocation.attempt_id == view.attempt_id,
                Allocation.purpose == "old replica",
                Allocation.freed_at.is_(None),
            )
        )
        return tuple(Path(path) for path in paths if path)


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
