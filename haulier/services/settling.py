"""What has changed about those that wait, before anybody is begun: asked of the rows, so no event can be missed."""

from __future__ import annotations

from sqlalchemy import ColumnElement, ScalarSelect, and_, func, or_, select
from sqlalchemy.orm import Session, aliased

from haulier.errors import Problem
from haulier.planner.refusals import lost_source
from haulier.services.context import Unit
from haulier.services.moves import end_waiting
from models import WAITS, Batch, BatchState, Migration, MigrationAfter, MigrationState, Node, NodeState, Vm

# Whoever commits a hand-over waits for this transaction: the rest is for the next one.
_AT_A_TIME = 25
_AFTER_FAILED = "after_failed"


def settle(unit: Unit) -> bool:
    """Look after those that wait: VMs that are elsewhere, those that can never begin. Says whether there may be more.

    None of these is begun before that: whoever begins looks at the VM, the batch, what comes before, and the nodes.
    """
    _follow_vms(unit)
    left = _AT_A_TIME
    while left > 0 and (ends := _to_be_ended(unit.session, left)):
        for migration, end in ends.items():
            end_waiting(unit, migration, (end,) if end else ())
        unit.session.flush()
        left -= len(ends)
    return left <= 0


def _to_be_ended(session: Session, most: int) -> dict[Migration, Problem | None]:
    return {**_in_cancelled_batches(session, most), **_behind_failed(session, most), **_on_lost_nodes(session, most)}


def failures() -> ScalarSelect[int]:
    """How many of a batch's migrations have failed; those that only came after one of these are not counted."""
    code = func.coalesce(Migration.problems[0]["code"].as_string(), "")
    refused = and_(Migration.state == MigrationState.REFUSED, code != _AFTER_FAILED)
    failed = or_(Migration.state == MigrationState.UNDONE, refused)
    return select(func.count()).where(Migration.batch_id == Batch.id, failed).scalar_subquery()


def stop_batches(unit: Unit) -> None:
    """Stop the batches of which as many have failed as may, in the transaction that would begin others of them."""
    open_: list[ColumnElement[bool]] = [Batch.state == BatchState.OPEN, Batch.stop_after.is_not(None)]
    if unit.session.scalar(select(Batch.id).where(*open_).limit(1)) is None:
        return
    open_.append(select(Migration.id).where(Migration.batch_id == Batch.id, WAITS).exists())
    for batch in unit.session.scalars(select(Batch).where(*open_, failures() - Batch.forgiven >= Batch.stop_after)):
        batch.state = BatchState.STOPPED
        unit.note("batch.stopped", batch=batch.id, stop_after=batch.stop_after)
    unit.session.flush()


def _follow_vms(unit: Unit) -> None:
    """A VM that was recovered elsewhere while it waited leaves from there, and is held by the limits of that node."""
    moved = (Migration.source_id != Vm.node_id, Migration.target_id != Vm.node_id)
    query = select(Migration, Vm.node_id).join(Vm, Vm.id == Migration.vm_id).where(WAITS, *moved)
    for migration, node_id in unit.session.execute(query).all():
        migration.source_id = node_id
    unit.session.flush()


def _in_cancelled_batches(session: Session, most: int) -> dict[Migration, Problem | None]:
    """Such as failed and were to be tried again in the moment in which their batch was cancelled."""
    query = select(Migration).join(Batch, Batch.id == Migration.batch_id)
    found = session.scalars(query.where(WAITS, Batch.state == BatchState.CANCELLED).limit(most))
    return dict.fromkeys(found)


def _behind_failed(session: Session, most: int) -> dict[Migration, Problem | None]:
    """Those that wait for one that has ended and is not done."""
    before, vm = aliased(Migration), aliased(Vm)
    ended = (MigrationState.UNDONE, MigrationState.REFUSED, MigrationState.CANCELLED)
    query = (
        select(Migration, vm.name)
        .join(MigrationAfter, MigrationAfter.migration_id == Migration.id)
        .join(before, before.id == MigrationAfter.after_id)
        .join(vm, vm.id == before.vm_id)
        .where(WAITS, before.state.in_(ended))
        .limit(most)
    )
    hint = "Submit what is left as a new batch."
    return {
        row[0]: Problem(_AFTER_FAILED, f"{row[1]}, which was to be moved before, was not", hint)
        for row in session.execute(query)
    }


def _on_lost_nodes(session: Session, most: int) -> dict[Migration, Problem | None]:
    """Their VMs can be recovered, and then be where they are to be, or be migrated from there."""
    query = (
        select(Migration, Node.name)
        .join(Vm, Vm.id == Migration.vm_id)
        .join(Node, Node.id == Vm.node_id)
        .where(WAITS, Node.state == NodeState.LOST)
        .limit(most)
    )
    return {row[0]: lost_source(row[1]) for row in session.execute(query)}
