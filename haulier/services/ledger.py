"""The ledger of TPM states: which copy is worth what. It holds digests and identities, never a state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.services.context import Context
from haulier.services.quarantine import surely_over
from models import LedgerRole, Migration, TpmLedger
from models.transitions import AT_WORK, require_legal


@dataclass(frozen=True, slots=True)
class TpmCopy:
    """One copy of a VM's TPM state, by where it is."""

    vm_id: int
    node_id: int
    path: Path


def find_row(session: Session, copy: TpmCopy) -> TpmLedger | None:
    """The row of a copy that is not destroyed."""
    return session.scalar(
        select(TpmLedger).where(
            TpmLedger.vm_id == copy.vm_id,
            TpmLedger.node_id == copy.node_id,
            TpmLedger.path == str(copy.path),
            TpmLedger.role != LedgerRole.DESTROYED,
        )
    )


def is_recorded(context: Context, copy: TpmCopy) -> bool:
    """Whether a file is a copy of the VM's TPM state that is not destroyed."""
    with context.database.read() as session:
        return find_row(session, copy) is not None


def recorded_identity(context: Context, vm_id: int) -> str | None:
    """Who the VM's TPM is, as far as was ever recorded."""
    with context.database.read() as session:
        return session.scalar(
            select(TpmLedger.identity).where(TpmLedger.vm_id == vm_id, TpmLedger.role == LedgerRole.ACTIVE)
        )


def reserve_copy(context: Context, copy: TpmCopy, *, epoch: int) -> None:
    """Write down that a copy is about to come to be. Safe to call twice."""
    with context.database.write() as session:
        if find_row(session, copy) is None:
            session.add(
                TpmLedger(
                    vm_id=copy.vm_id,
                    node_id=copy.node_id,
                    path=str(copy.path),
                    role=LedgerRole.RESERVED,
                    epoch=epoch,
                    changed_at=now(),
                )
            )


def record_active(context: Context, copy: TpmCopy, *, epoch: int, **found: object) -> None:
    """Write down what is known of the VM's own copy: digest, identity, versions."""
    with context.database.write() as session:
        row = find_row(session, copy)
        if row is None:
            row = TpmLedger(
                vm_id=copy.vm_id, node_id=copy.node_id, path=str(copy.path), role=LedgerRole.ACTIVE, epoch=epoch
            )
            session.add(row)
        for name, value in found.items():
            setattr(row, name, value)
        row.changed_at = now()


def move_copy(session: Session, copy: TpmCopy, to: LedgerRole, *, keep_s: float = 0.0) -> None:
    """Move a copy's row on; nothing happens when it is there already or was never recorded."""
    row = find_row(session, copy)
    if row is None or row.role is to:
        return
    require_legal(row.role, to)
    row.role, row.changed_at = to, now()
    if to is LedgerRole.QUARANTINED:
        row.keep_until = now() + timedelta(seconds=keep_s)


def drop_reserved(context: Context, copy: TpmCopy) -> None:
    """Write down that a copy which never became the VM's is gone. Safe to call twice."""
    with context.database.write() as session:
        move_copy(session, copy, LedgerRole.DESTROYED)


def quarantine_path(context: Context, copy: TpmCopy, away: Path) -> None:
    """Write down that a quarantined copy lies elsewhere from now on. Safe to call twice."""
    with context.database.write() as session:
        row = find_row(session, copy)
        if row is not None and row.role is LedgerRole.QUARANTINED:
            row.path, row.changed_at = str(away), now()


def expired_copies(context: Context, node_id: int) -> list[tuple[int, Path]]:
    """The quarantined copies of a node whose time is over: row and file.

    Not those of a VM that is still leaving the node: `retire_source` writes down the quarantine as the file's place
    before it puts it there, and who looked in between would take a file that comes a moment later for gone.
    """
    asked = context.sightings.moment()
    leaving = select(Migration.vm_id).where(Migration.source_id == node_id, Migration.state.in_(AT_WORK))
    with context.database.read() as session:
        rows = session.scalars(
            select(TpmLedger).where(
                TpmLedger.node_id == node_id,
                TpmLedger.role == LedgerRole.QUARANTINED,
                TpmLedger.keep_until <= now(),
                TpmLedger.vm_id.not_in(leaving),
            )
        )
        paths = {row.id: Path(row.path) for row in rows}
    return [(row_id, paths[row_id]) for row_id in surely_over(context, "tpm copies", paths, asked=asked)]


def record_destroyed(context: Context, row_id: int) -> None:
    """Write down that a quarantined copy is gone for good."""
    with context.unit() as unit:
        row = unit.session.get_one(TpmLedger, row_id)
        if row.role is not LedgerRole.DESTROYED:
            require_legal(row.role, LedgerRole.DESTROYED)
            row.role, row.changed_at = LedgerRole.DESTROYED, now()
            unit.note("tpm.destroyed", vm=row.vm.name, node=row.node.name)
