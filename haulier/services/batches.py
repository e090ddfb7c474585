"""Batches as people see them: shown with counts and migrations, paused, resumed and cancelled."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Refused
from haulier.services.admission import AT_ONCE_S, admit
from haulier.services.context import Context, Unit
from haulier.services.forecast import eta_s, spans
from haulier.services.holds import blocked_now
from haulier.services.lookup import find_numbered
from haulier.services.migrations import cancel_migration, shown_state
from haulier.services.queue import all_places
from haulier.services.room import ADMISSION
from haulier.services.settling import failures
from haulier.services.waiting import make_room
from models import Batch, BatchState, Event, Migration, MigrationState, Node, Vm
from models.transitions import OPEN_MIGRATION


def find_batch(session: Session, batch_id: int) -> Batch:
    """Raises Refused `unknown_batch`."""
    return find_numbered(session, Batch, batch_id, kind="batch")


def list_batches(context: Context, *, limit: int = 100) -> list[dict[str, Any]]:
    """The newest batches with their counts, as contract.md shows them, without their migrations."""
    with context.database.read() as session:
        rows = session.scalars(select(Batch).order_by(Batch.id.desc()).limit(limit)).all()
        return [{**_document(session, batch), "eta_s": None} for batch in rows]


def show_batch(context: Context, batch_id: int) -> dict[str, Any]:
    """One batch as contract.md shows it, with its migrations. Raises Refused for an unknown one."""
    with context.database.read() as session:
        batch = find_batch(session, batch_id)
        query = select(Migration, Vm.name).join(Vm, Vm.id == Migration.vm_id).where(Migration.batch_id == batch.id)
        rows = session.execute(query.order_by(Migration.id)).all()
        names = {row.id: row.name for row in session.execute(select(Node.id, Node.name))}
        blocked = blocked_now(session)
        waiting_for = {each.id: each.waiting_for for each in all_places(context, session, blocked)}
        migrations = [
            {
                "id": migration.id,
                "vm": vm,
                "source": names[migration.source_id],
                "target": names[migration.target_id],
                "label": migration.label,
                "priority": migration.priority,
                "deadline": migration.deadline and migration.deadline.isoformat(),
                "state": shown_state(migration.state, needs_operator=migration.needs_operator),
                "error": migration.problems[0] if migration.problems else None,
                "waiting_for": waiting_for.get(migration.id),
            }
            for migration, vm in rows
        ]
        expected = spans(context, session, blocked=blocked)
        ends = [expected.get(migration.id) for migration, _ in rows if migration.state in OPEN_MIGRATION]
        return {**_document(session, batch), "eta_s": eta_s(ends), "migrations": migrations}


def _document(session: Session, batch: Batch) -> dict[str, Any]:
    counts = _counts(session, batch)
    state = "done" if batch.state is BatchState.OPEN and _is_over(counts) else batch.state.value
    return {
        "id": batch.id,
        "name": batch.name,
        "key": batch.key,
        "state": state,
        "stop_after": batch.stop_after,
        "created_at": batch.created_at.isoformat(),
        "counts": counts,
    }


def _is_over(counts: dict[str, int]) -> bool:
    return not any(counts.get(state) for state in ("queued", "running", "needs_operator"))


def _counts(session: Session, batch: Batch) -> dict[str, int]:
    """How many of its migrations are in each of the states that people are shown."""
    query = (
        select(Migration.state, Migration.needs_operator, func.count())
        .where(Migration.batch_id == batch.id)
        .group_by(Migration.state, Migration.needs_operator)
    )
    counts = Counter[str]()
    for state, needs_operator, number in session.execute(query):
        counts[shown_state(state, needs_operator=needs_operator)] += number
    return dict(counts)


def pause(context: Context, batch_id: int) -> dict[str, Any]:
    """Begin none of its migrations any more; those at work go on. Raises Refused for one that was cancelled."""
    return _change(context, batch_id, BatchState.PAUSED)


def resume(context: Context, batch_id: int) -> dict[str, Any]:
    """Let it go on; failures so far are forgiven. Raises Refused for one that was cancelled."""
    document = _change(context, batch_id, BatchState.OPEN)
    admit(context, at_most_s=AT_ONCE_S)
    return document


def _change(context: Context, batch_id: int, state: BatchState) -> dict[str, Any]:
    with context.unit() as unit:
        batch = _lock(unit, batch_id)
        if batch.state is BatchState.CANCELLED or _is_over(_counts(unit.session, batch)):
            raise Refused("batch_over", f"batch {batch_id} is over", "Submit it again, with another --key.")
        if batch.state is not state:
            batch.state = state
            if state is BatchState.OPEN:
                batch.forgiven = unit.session.scalar(select(failures()).where(Batch.id == batch.id)) or 0
            unit.note(f"batch.{state}", batch=batch.id)
        unit.session.flush()
        make_room(unit)
    return show_batch(context, batch_id)


def _lock(unit: Unit, batch_id: int) -> Batch:
    """The batch, with nobody else deciding who begins until the end of the transaction."""
    find_batch(unit.session, batch_id)
    unit.context.database.exclude_others(unit.session, ADMISSION)
    return unit.session.get_one(Batch, batch_id, with_for_update=True, populate_existing=True)


def cancel(context: Context, batch_id: int, *, undo: bool) -> dict[str, Any]:
    """End what waits; what is at work finishes, or with `undo` is undone where that can be. Safe to call twice.

    Raises Refused for one that is over.
    """
    with context.unit() as unit:
        batch = _lock(unit, batch_id)
        if batch.state is not BatchState.CANCELLED:
            if _is_over(_counts(unit.session, batch)):
                raise Refused("batch_over", f"batch {batch_id} is over", "There is nothing to cancel.")
            batch.state = BatchState.CANCELLED
            unit.note("batch.cancelled", batch=batch_id)
        _end_waiting(unit, batch_id)
        at_work = (Migration.batch_id == batch_id, Migration.state.in_(OPEN_MIGRATION))
        left = list(unit.session.scalars(select(Migration.id).where(*at_work))) if undo else []
    for migration_id in left:
        _undo(context, migration_id)
    return show_batch(context, batch_id)


def _end_waiting(unit: Unit, batch_id: int) -> None:
    """In few statements, however many there are: whoever commits a hand-over waits for it."""
    moment, waits = now(), (Migration.batch_id == batch_id, Migration.state == MigrationState.QUEUED)
    query = select(Migration.id, Vm.name).join(Vm, Vm.id == Migration.vm_id).where(*waits)
    ended = [(row[0], row[1]) for row in unit.session.execute(query)]
    if not ended:
        return
    change = update(Migration).where(*waits).values(state=MigrationState.CANCELLED, finished_at=moment)
    unit.session.execute(change.execution_options(synchronize_session=False))
    told: list[dict[str, Any]] = [
        {"at": moment, "kind": "migration.cancelled", "vm": vm, "node": None, "migration": number, "data": {}}
        for number, vm in ended
    ]
    unit.session.execute(insert(Event), told)
    unit.ring("events", *(f"migration.{number}" for number, _ in ended))


def _undo(context: Context, migration_id: int) -> None:
    try:
        cancel_migration(context, migration_id)
    except Refused as error:
        # It has been handed over, or has ended.
        if error.code not in ("cancel_too_late", "migration_over"):
            raise
