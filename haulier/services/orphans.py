"""What an attempt that is over never gave back: found by its open allocations, kept for a while, then freed.

No phase leaves such rows; a defect, or an operator's hand, does. Ports and RAM are promises only and are given back at
once. A file goes into quarantine first, because nobody knows any more why it is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import ColumnElement, and_, select, update

from haulier.clock import now
from haulier.services.context import Context
from haulier.services.ledger import TpmCopy, move_copy
from haulier.services.quarantine import surely_over
from models import Allocation, AllocationKind, Attempt, LedgerRole

_QUARANTINED = "quarantined orphan"


@dataclass(frozen=True, slots=True)
class Orphan:
    """A volume that an attempt made on this node and never gave back. `vm_id` is whose it was to be."""

    id: int
    vm_id: int
    vm: str
    migration: int
    path: Path
    quarantined: bool

    @property
    def away(self) -> Path:
        """Where it lies in quarantine: in its own folder, so that it stays on its own storage."""
        return self.path if self.quarantined else self.path.with_name(f"orphan-{self.id}-{self.path.name}")


def find_orphans(context: Context, node_id: int) -> list[Orphan]:
    """The files of the node that are to be put away, and those whose time in quarantine is over."""
    asked = context.sightings.moment()
    kept_since = now() - timedelta(seconds=context.settings.tpm_quarantine_s)
    is_kept = and_(Allocation.purpose == _QUARANTINED, Allocation.taken_at > kept_since)
    with context.database.read() as session:
        wanted = select(Allocation).where(*_forgotten(node_id), Allocation.kind == AllocationKind.VOLUME, ~is_kept)
        found = [_orphan(row) for row in session.scalars(wanted.order_by(Allocation.id))]
    over = surely_over(
        context, "orphans", {orphan.id: orphan.path for orphan in found if orphan.quarantined}, asked=asked
    )
    return [orphan for orphan in found if not orphan.quarantined or orphan.id in over]


def give_back_promises(context: Context, node_id: int) -> None:
    """Ports and RAM of the node that nobody gave back are free again. Safe to call twice."""
    wanted = (*_forgotten(node_id), Allocation.kind != AllocationKind.VOLUME)
    # Looked for first: a writing transaction with every heartbeat would stand in the way of others.
    with context.database.read() as session:
        if session.scalar(select(Allocation.id).where(*wanted).limit(1)) is None:
            return
    with context.database.write() as session:
        session.execute(update(Allocation).where(*wanted).values(freed_at=now()))


def _forgotten(node_id: int) -> tuple[ColumnElement[bool], ...]:
    """Open allocations of a node whose attempt is over."""
    over = select(Attempt.id).where(Attempt.finished_at.is_not(None))
    return Allocation.node_id == node_id, Allocation.freed_at.is_(None), Allocation.attempt_id.in_(over)


def _orphan(row: Allocation) -> Orphan:
    migration = row.attempt.migration
    quarantined = row.purpose == _QUARANTINED
    return Orphan(row.id, migration.vm_id, migration.vm.name, migration.id, Path(str(row.path)), quarantined)


def record_quarantined(context: Context, orphan: Orphan) -> None:
    """Write down that the file was put away, and tell."""
    with context.unit() as unit:
        row = unit.session.get_one(Allocation, orphan.id)
        # A TPM state that never became the VM's is promised to nobody any more.
        move_copy(unit.session, TpmCopy(orphan.vm_id, row.node_id, orphan.path), LedgerRole.DESTROYED)
        row.path, row.purpose, row.taken_at = str(orphan.away), _QUARANTINED, now()
        unit.note("volume.quarantined", vm=orphan.vm, migration=orphan.migration, path=str(orphan.away))


def record_freed(context: Context, orphan: Orphan) -> None:
    """Write down that the file is gone, and tell."""
    with context.unit() as unit:
        row = unit.session.get_one(Allocation, orphan.id)
        move_copy(unit.session, TpmCopy(orphan.vm_id, row.node_id, orphan.path), LedgerRole.DESTROYED)
        row.freed_at = now()
        unit.note("volume.freed", vm=orphan.vm, migration=orphan.migration, path=str(orphan.path))
