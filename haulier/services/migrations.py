"""Migrations as people see them: explained, filed, shown, cancelled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Refused
from haulier.planner.refusals import STARTED, FilingFacts, MissingStorage, refuse_filing
from haulier.services.context import Context
from haulier.services.filing import USUAL_TERMS, Terms, filing_facts, open_migration
from haulier.services.lookup import find_migration, find_node, find_vm
from haulier.services.recovery import take_up_again
from haulier.services.transfers import Crossing, file_transfers, plan_crossings
from haulier.services.way import is_syncing, make_way
from models import (
    Migration,
    MigrationState,
    Node,
    Phase,
    Step,
    StepState,
    TransferMethod,
    Vm,
    VolumeTransfer,
    chain_of,
)
from models.transitions import OPEN_MIGRATION

# The states of contract.md: the two that decide ownership are inner ones.
_SHOWN_AS = {MigrationState.HANDED_OVER: "running", MigrationState.ROLLING_BACK: "running"}
# One that needs an operator is not over, but nothing more happens by itself.
ENDED = frozenset({"done", "undone", "refused", "cancelled", "needs_operator"})
# What a first guess at the duration rests on, until rates are measured: a loopback or 10 Gbit/s link.
_GUESS_BYTES_PER_S = 400 << 20
_GUESS_FIXED_S = 2.0


def explain(
    context: Context, vm_name: str, *, target: str, storage_map: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """How each volume would cross, live or, if the VM does not run, offline, and what would be refused.

    Touches nothing. Raises Refused for unknown names.
    """
    with context.database.read() as session:
        vm, node = find_vm(session, vm_name), find_node(session, target)
        terms = Terms(offline=vm.state not in STARTED, storage_map=storage_map)
        crossings = plan_crossings(session, vm, node, offline=terms.offline, storage_map=storage_map)
        facts = _filing_facts(context, session, vm, node, crossings, terms)
        if is_syncing(session, vm):
            # It would make way.
            facts = dataclasses.replace(facts, open_migration=None)
        refusals = refuse_filing(facts)
        moved = sum(crossing.volume.size_bytes or 0 for crossing in crossings if not crossing.stays)
        ram = 0 if terms.offline else int(vm.pinned.get("ram_kib", 0)) * 1024
        rate = min(_GUESS_BYTES_PER_S, context.settings.max_bandwidth_bytes_per_s or _GUESS_BYTES_PER_S)
        return {
            "vm": vm.name,
            "source": vm.node.name,
            "target": node.name,
            "volumes": [_planned(crossing) for crossing in crossings],
            "refusals": [problem.as_dict() for problem in refusals],
            "phases": list(dict.fromkeys(rule.phase.value for rule in chain_of(offline=terms.offline))),
            "estimate_s": round(_GUESS_FIXED_S + (moved + ram) / rate, 1),
        }


def _planned(crossing: Crossing) -> dict[str, Any]:
    choice, storages = crossing.choice, {"storage": crossing.volume.storage.name, "target_storage": crossing.to}
    return {"device": choice.device, "role": choice.role, "method": choice.method, "reason": choice.reason, **storages}


def file_migration(context: Context, vm_name: str, *, target: str, terms: Terms = USUAL_TERMS) -> int:
    """File a migration and start its chain. Returns its id. A sync of the VM makes way for it.

    Raises Refused with all reasons; nothing is written then.
    """
    make_way(context, vm_name)
    try:
        return _file(context, vm_name, target=target, terms=terms)
    except IntegrityError as error:
        # Somebody else filed one between our look and our row; SQL lets only one of us through.
        if not any(name in str(error.orig) for name in ("uq_migration_one_open", "migration.vm_id")):
            raise
        raise Refused("migration_open", f"VM {vm_name} is already in a migration", "haulier migration list") from error


def _file(context: Context, vm_name: str, *, target: str, terms: Terms) -> int:
    with context.unit() as unit:
        vm, node = find_vm(unit.session, vm_name, lock=True), find_node(unit.session, target)
        crossings = plan_crossings(unit.session, vm, node, offline=terms.offline, storage_map=terms.storage_map)
        if problems := refuse_filing(_filing_facts(context, unit.session, vm, node, crossings, terms)):
            raise Refused.because(problems)
        attempt = open_migration(context, unit, vm, node, terms)
        file_transfers(unit, attempt, crossings)
        return attempt.migration_id


def _filing_facts(
    context: Context, session: Session, vm: Vm, target: Node, crossings: tuple[Crossing, ...], terms: Terms
) -> FilingFacts:
    missing = sorted({(each.to, each.volume.storage.name) for each in crossings if each.storage is None})
    return dataclasses.replace(
        filing_facts(context, session, vm, target, offline=terms.offline),
        choices=tuple(crossing.choice for crossing in crossings),
        missing_storages=tuple(MissingStorage(to, source) for to, source in missing),
        names_taken=tuple(f"{each.to}:{each.volume.name}" for each in crossings if each.name_is_taken),
        unused_maps=tuple(sorted(set(terms.storage_map) - {each.volume.storage.name for each in crossings})),
    )


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
    """Whether everything that can be refused has been looked at."""
    return is_over(document) or all(
        phase["state"] == StepState.DONE for phase in document["phases"] if phase["name"] == Phase.CHECK
    )


def cancel_migration(context: Context, migration_id: int) -> dict[str, Any]:
    """Ask for a migration to be undone. Raises Refused when it has ended or the guest was handed over already."""
    with context.unit() as unit:
        migration = find_migration(unit.session, migration_id)
        if migration.state in (MigrationState.HANDED_OVER, MigrationState.DONE):
            raise Refused(
                "cancel_too_late", f"VM {migration.vm.name} is on {migration.target.name} already", "Migrate it back."
            )
        if migration.state not in (MigrationState.QUEUED, MigrationState.RUNNING):
            raise Refused(
                "migration_over", f"migration {migration_id} is {migration.state}", "There is nothing to undo."
            )
        asked = unit.session.execute(
            update(Migration)
            .where(Migration.id == migration_id, Migration.state == migration.state)
            .values(cancel_asked=True)
            .execution_options(synchronize_session="fetch")
        )
        if asked.rowcount != 1:  # type: ignore[attr-defined]  # an UPDATE's result has it
            raise Refused("cancel_too_late", f"migration {migration_id} has just gone on", "Look where the VM is now.")
        unit.note("migration.cancel_asked", vm=migration.vm.name, migration=migration_id)
    return show_migration(context, migration_id)


def open_migrations(context: Context) -> list[int]:
    """The ids of all that have not ended, oldest first; the ones that wait for an operator are among them."""
    with context.database.read() as session:
        still_open = Migration.state.in_(OPEN_MIGRATION)
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
        terms = Terms(migration.offline, migration.storage_map or {}, migration.timeout_s, migration.stall_s)
    if needs_operator:
        take_up_again(context, migration_id)
        return migration_id
    return file_migration(context, vm, target=target, terms=terms)


def list_migrations(context: Context, *, limit: int = 100) -> list[dict[str, Any]]:
    """The newest migrations as contract.md shows them; syncs are not among them."""
    with context.database.read() as session:
        guests = Migration.replication_id.is_(None)
        rows = session.scalars(select(Migration).where(guests).order_by(Migration.id.desc()).limit(limit))
        return [_document(migration) for migration in rows]


def show_migration(context: Context, migration_id: int) -> dict[str, Any]:
    """One migration as contract.md shows it. Raises Refused for an unknown one."""
    with context.database.read() as session:
        return _document(find_migration(session, migration_id))


def _document(migration: Migration) -> dict[str, Any]:
    attempt = migration.attempts[-1] if migration.attempts else None
    steps = attempt.steps if attempt else []
    transfers = attempt.transfers if attempt else []
    problem = migration.problems[0] if migration.problems else None
    return {
        "id": migration.id,
        "vm": migration.vm.name,
        "source": migration.source.name,
        "target": migration.target.name,
        "state": _shown_state(migration),
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
        "kind": "sync" if migration.replication_id else "migration",
        "generation": next((step.notes["generation"] for step in steps if "generation" in step.notes), None),
        "error": problem,
        "errors": migration.problems,
    }


def _shown_state(migration: Migration) -> str:
    return "needs_operator" if migration.needs_operator else _SHOWN_AS.get(migration.state, migration.state.value)


def _phase(step: Step, migration: Migration) -> dict[str, Any]:
    names = {"source": migration.source.name, "target": migration.target.name, "control": None}
    return {
        "name": step.phase,
        "state": step.state,
        "side": step.side,
        "node": names[step.side],
        "seconds": _seconds(step.started_at, step.finished_at),
        "progress": step.progress,
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
