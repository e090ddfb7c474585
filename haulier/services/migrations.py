"""Migrations as people see them: explained, filed, shown, cancelled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload, selectinload

from haulier.clock import now
from haulier.errors import Refused
from haulier.planner.refusals import STARTED, refuse_filing
from haulier.services.admission import AT_ONCE_S, admit
from haulier.services.context import Context, Unit
from haulier.services.filing import USUAL_TERMS, Terms, Wanted, meets_another, plan_migration, terms_of, write_migration
from haulier.services.forecast import measured_rates
from haulier.services.gate import is_at_gate
from haulier.services.holds import holds_of
from haulier.services.lookup import find_migration, find_node, find_vm
from haulier.services.moves import move_migration
from haulier.services.queue import places_at_gate
from haulier.services.recovery import take_up_again
from haulier.services.steps import roll_back
from haulier.services.transfers import Crossing
from models import (
    Attempt,
    Migration,
    MigrationState,
    Phase,
    Step,
    StepState,
    TransferMethod,
    VolumeTransfer,
    chain_of,
)
from models.transitions import AT_WORK, OPEN_MIGRATION

# The states of contract.md: the two that decide ownership are inner ones.
_SHOWN_AS = {MigrationState.HANDED_OVER: "running", MigrationState.ROLLING_BACK: "running"}
# One that needs an operator is not over, but nothing more happens by itself.
ENDED = frozenset({"done", "undone", "refused", "cancelled", "needs_operator"})


def explain(
    context: Context, vm_name: str, *, target: str, storage_map: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """How each volume would cross, live or, if the VM does not run, offline, and what would be refused.

    Touches nothing. Raises Refused for unknown names.
    """
    with context.database.read() as session:
        vm, node = find_vm(session, vm_name), find_node(session, target)
        terms = Terms(offline=vm.state not in STARTED, storage_map=storage_map)
        plan = plan_migration(context, session, vm, node, terms)
        crossings, refusals = plan.crossings, refuse_filing(plan.facts)
        rates = measured_rates(context, session)
        return {
            "vm": vm.name,
            "source": vm.node.name,
            "target": node.name,
            "volumes": [_planned(crossing) for crossing in crossings],
            "refusals": [problem.as_dict() for problem in refusals],
            "phases": list(dict.fromkeys(rule.phase.value for rule in chain_of(offline=terms.offline))),
            "estimate_s": round(rates.seconds(plan.bytes, (vm.node_id, node.id)), 1),
        }


def _planned(crossing: Crossing) -> dict[str, Any]:
    choice, storages = crossing.choice, {"storage": crossing.volume.storage.name, "target_storage": crossing.to}
    return {"device": choice.device, "role": choice.role, "method": choice.method, "reason": choice.reason, **storages}


def file_migration(context: Context, vm_name: str, *, target: str, terms: Terms = USUAL_TERMS) -> int:
    """File a migration, which is begun at once if the limits leave room. Returns its id.

    Raises Refused with all reasons; nothing is written then.
    """
    try:
        with context.unit() as unit:
            vm, node = find_vm(unit.session, vm_name, lock=True), find_node(unit.session, target)
            plan = plan_migration(context, unit.session, vm, node, terms)
            if problems := refuse_filing(plan.facts):
                raise Refused.because(problems)
            migration_id = write_migration(context, unit, Wanted(vm, node, terms, plan.bytes)).id
    except IntegrityError as error:
        # Somebody else filed one between our look and our row; SQL lets only one of us through.
        if not meets_another(error):
            raise
        raise Refused("migration_open", f"VM {vm_name} is already in a migration", "haulier migration list") from error
    admit(context, at_most_s=AT_ONCE_S)
    return migration_id


def await_migration(
    context: Context,
    migration_id: int,
    *,
    until: Callable[[dict[str, Any]], bool],
    look: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Wait until the migration's document is as wanted; each new look at it is shown to `look`.

    Returns the last one.
    """
    with context.signals.listen(f"migration.{migration_id}") as bell:
        while True:
            document = show_migration(context, migration_id)
            look(document)
            if until(document):
                return document
            bell.wait(0.5)


def is_over(document: dict[str, Any]) -> bool:
    """Whether a migration's document is of one that has ended."""
    return document["state"] in ENDED


def is_past_check(document: dict[str, Any]) -> bool:
    """Whether everything that can be refused has been looked at, as far as it can be now."""
    if document["waiting_for"]:
        return True
    checks = [phase["state"] for phase in document["phases"] if phase["name"] == Phase.CHECK]
    return is_over(document) or (bool(checks) and all(state == StepState.DONE for state in checks))


def cancel_migration(context: Context, migration_id: int) -> dict[str, Any]:
    """End a migration that waits, or ask for one that is at work to be undone.

    Raises Refused when it has ended or the guest was handed over already.
    """
    with context.unit() as unit:
        migration = find_migration(unit.session, migration_id)
        # Locked in the order of everybody who decides about an attempt, and read as it is then.
        attempt = _lock_newest(unit.session, migration_id)
        unit.session.refresh(migration)
        if migration.state in (MigrationState.HANDED_OVER, MigrationState.DONE):
            raise Refused(
                "cancel_too_late", f"VM {migration.vm.name} is on {migration.target.name} already", "Migrate it back."
            )
        if not _can_be_cancelled(migration, attempt):
            raise Refused(
                "migration_over", f"migration {migration_id} is {migration.state}", "There is nothing to undo."
            )
        if not _end_or_ask(unit, migration, attempt):
            raise Refused("cancel_too_late", f"migration {migration_id} has just gone on", "Look where the VM is now.")
    return show_migration(context, migration_id)


def _lock_newest(session: Session, migration_id: int) -> Attempt | None:
    newest = select(func.max(Attempt.id)).where(Attempt.migration_id == migration_id)
    attempt_id = session.scalar(newest)
    if attempt_id is None:
        return None
    return session.get_one(Attempt, attempt_id, with_for_update=True, populate_existing=True)


def _can_be_cancelled(migration: Migration, attempt: Attempt | None) -> bool:
    """One that is being undone would be tried again, if it has tries left."""
    tried_again = attempt is not None and attempt.number < migration.tries
    states = (MigrationState.QUEUED, MigrationState.RUNNING)
    return migration.state in states or (migration.state is MigrationState.ROLLING_BACK and tried_again)


def _end_or_ask(unit: Unit, migration: Migration, attempt: Attempt | None) -> bool:
    """By compare-and-set: False if it has gone on since it was read."""
    if migration.state is MigrationState.QUEUED:
        return move_migration(unit, migration, MigrationState.CANCELLED, finished_at=now())
    asked = unit.session.execute(
        update(Migration)
        .where(Migration.id == migration.id, Migration.state == migration.state)
        .values(cancel_asked=True)
        .execution_options(synchronize_session="fetch")
    )
    unit.note("migration.cancel_asked", vm=migration.vm.name, migration=migration.id)
    if attempt is not None and is_at_gate(attempt):
        # Nobody works at it who would notice.
        roll_back(unit, migration, attempt)
    return asked.rowcount == 1  # type: ignore[attr-defined, no-any-return]  # an UPDATE's result has it


def open_migrations(context: Context, *, waiting: bool = True) -> list[int]:
    """The ids of all that have not ended, oldest first; the ones that wait for an operator are among them, and with
    `waiting` those that have not begun.
    """
    with context.database.read() as session:
        still_open = Migration.state.in_(OPEN_MIGRATION if waiting else AT_WORK)
        return list(session.scalars(select(Migration.id).where(still_open).order_by(Migration.id)))


def retry_migration(context: Context, migration_id: int) -> int:
    """File the same wish again after it failed; one that waits for an operator goes on itself. Returns the id."""
    with context.database.read() as session:
        migration = find_migration(session, migration_id)
        needs_operator = migration.needs_operator
        if migration.replication_id is not None and not needs_operator:
            raise Refused("not_to_be_retried", f"{migration_id} is a sync", "haulier replicate, once more.")
        ended = (MigrationState.UNDONE, MigrationState.REFUSED, MigrationState.CANCELLED)
        if not needs_operator and migration.state not in ended:
            hint = "One that was undone, cancelled or refused is, and one that waits for an operator."
            raise Refused("not_to_be_retried", f"migration {migration_id} is {migration.state}", hint)
        vm, target = migration.vm.name, migration.target.name
        terms = terms_of(migration)
    if needs_operator:
        take_up_again(context, migration_id)
        return migration_id
    return file_migration(context, vm, target=target, terms=terms)


# What a migration's document is made of.
_SHOWN = (
    joinedload(Migration.vm),
    joinedload(Migration.source),
    joinedload(Migration.target),
    selectinload(Migration.attempts).options(
        joinedload(Attempt.target),
        selectinload(Attempt.steps).joinedload(Step.bandwidth),
        selectinload(Attempt.transfers).joinedload(VolumeTransfer.volume),
    ),
)


def list_migrations(context: Context, *, limit: int = 100, before: int | None = None) -> list[dict[str, Any]]:
    """The newest migrations as contract.md shows them, of those that are older than `before`; no syncs."""
    with context.database.read() as session:
        wanted = [Migration.replication_id.is_(None), *([] if before is None else [Migration.id < before])]
        rows = session.scalars(
            select(Migration).options(*_SHOWN).where(*wanted).order_by(Migration.id.desc()).limit(limit)
        ).all()
        held = _held(context, session, rows)
        return [_document(migration, held) for migration in rows]


def show_migration(context: Context, migration_id: int) -> dict[str, Any]:
    """One migration as contract.md shows it. Raises Refused for an unknown one."""
    with context.database.read() as session:
        migration = find_migration(session, migration_id)
        return _document(migration, _held(context, session, [migration]))


def _held(context: Context, session: Session, rows: Iterable[Migration]) -> dict[int, dict[str, Any]]:
    """What holds those that wait, if there are any among them."""
    queued = [row.id for row in rows if row.state is MigrationState.QUEUED]
    found = {number: asdict(hold) for number, hold in holds_of(context, session, queued).items()} if queued else {}
    if any(row.attempts and is_at_gate(row.attempts[-1]) for row in rows):
        found |= {place.id: place.waiting_for for place in places_at_gate(context, session)}
    return found


def _document(migration: Migration, held: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    attempt = migration.attempts[-1] if migration.attempts else None
    steps = attempt.steps if attempt else []
    transfers = attempt.transfers if attempt else []
    problem = migration.problems[0] if migration.problems else None
    return {
        "id": migration.id,
        "vm": migration.vm.name,
        "source": migration.source.name,
        "target": migration.target.name,
        "state": shown_state(migration.state, needs_operator=migration.needs_operator),
        "priority": migration.priority,
        "label": migration.label,
        "waiting_for": held.get(migration.id),
        "phases": [_phase(step, migration) for step in steps],
        "volumes": [
            {
                "device": transfer.volume.device,
                "role": transfer.role,
                "method": transfer.method,
                "bytes": transfer.bytes,
                "bytes_total": transfer.bytes_total,
                "seconds": transfer.seconds,
            }
            for transfer in transfers
        ],
        "downtime_ms": migration.downtime_ms,
        "pause": _pause(steps),
        "total_s": _seconds(migration.created_at, migration.finished_at),
        "ram_bytes": next((step.notes["ram_bytes"] for step in steps if "ram_bytes" in step.notes), None),
        "tpm": _tpm(transfers),
        "attempt": attempt.number if attempt else 0,
        "tries": migration.tries,
        "attempts": [_attempt(each) for each in migration.attempts],
        "kind": "sync" if migration.replication_id else "migration",
        "generation": next((step.notes["generation"] for step in steps if "generation" in step.notes), None),
        "error": problem,
        "errors": migration.problems,
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "target": attempt.target.name if attempt.target else None,
        "started_at": attempt.started_at.isoformat(),
        "seconds": _seconds(attempt.started_at, attempt.finished_at),
        "error": attempt.problem,
    }


def shown_state(state: MigrationState, *, needs_operator: bool) -> str:
    """The word of contract.md for where a migration stands."""
    return "needs_operator" if needs_operator else _SHOWN_AS.get(state, state.value)


def _phase(step: Step, migration: Migration) -> dict[str, Any]:
    target = step.attempt.target or migration.target
    names = {"source": migration.source.name, "target": target.name, "control": None}
    share = step.bandwidth if step.state is StepState.RUNNING else None
    return {
        "name": step.phase,
        "state": step.state,
        "side": step.side,
        "node": names[step.side],
        "seconds": _seconds(step.started_at, step.finished_at),
        "progress": step.progress,
        "share_bytes_per_s": share.share_bytes_per_s if share else None,
    }


def _pause(steps: list[Step]) -> dict[str, float]:
    """The moments inside the pause in milliseconds since its begin."""
    marks: dict[str, float] = {name: at for step in steps for name, at in step.marks.items()}
    begin = marks.get("paused")
    if begin is None:
        return {}
    in_order = sorted(marks.items(), key=lambda mark: mark[1])
    return {name: round((at - begin) * 1000, 2) for name, at in in_order}


def _tpm(transfers: list[VolumeTransfer]) -> dict[str, Any] | None:
    transfer = next((each for each in transfers if each.method is TransferMethod.TPM_SYNC), None)
    if transfer is None:
        return None
    identities = (transfer.identity_source, transfer.identity_target)
    return {
        "digest_source": transfer.digest_source,
        "digest_target": transfer.digest_target,
        "identity_same": None if None in identities else identities[0] == identities[1],
    }


def _seconds(begin: datetime | None, end: datetime | None) -> float | None:
    return None if begin is None else round(((end or now()) - begin).total_seconds(), 3)


def exit_status_of(state: str) -> int:
    """The exit status of contract.md for a migration's state."""
    return {"done": 0, "refused": 2, "needs_operator": 3}.get(state, 1)
