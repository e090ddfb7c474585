"""Migrations as people see them: explained, filed, shown, cancelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Refused
from haulier.planner.refusals import STARTED, FilingFacts, refuse_filing
from haulier.services.chain import start_attempt
from haulier.services.context import Context
from haulier.services.lookup import find_migration, find_node, find_vm
from haulier.services.nodes import silent_s
from haulier.services.recovery import take_up_again
from haulier.services.transfers import Crossing, file_transfers, plan_crossings
from haulier.settings import LONGEST_S
from models import (
    Migration,
    MigrationState,
    Node,
    Operation,
    Phase,
    Step,
    StepState,
    TransferMethod,
    Vm,
    VolumeTransfer,
    chain_of,
)
from models.transitions import OPEN_MIGRATION, OPEN_OPERATION

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
        refusals = refuse_filing(_filing_facts(context, session, vm, node, crossings, terms))
        moved = sum(crossing.volume.size_bytes or 0 for crossing in crossings if not crossing.stays)
        ram = 0 if terms.offline else int(vm.pinned.get("ram_kib", 0)) * 1024
        rate = min(_GUESS_BYTES_PER_S, context.settings.max_bandwidth_bytes_per_s or _GUESS_BYTES_PER_S)
        return {
            "vm": vm.name,
            "source": vm.node.name,
            "target": node.name,
            "volumes": [
                {"device": choice.device, "role": choice.role, "method": choice.method, "reason": choice.reason}
                for choice in (crossing.choice for crossing in crossings)
            ],
            "refusals": [problem.as_dict() for problem in refusals],
            "phases": list(dict.fromkeys(rule.phase.value for rule in chain_of(offline=terms.offline))),
            "estimate_s": round(_GUESS_FIXED_S + (moved + ram) / rate, 1),
        }


@dataclass(frozen=True, slots=True)
class Terms:
    """How a VM is to be migrated.

    `storage_map` names the target's storage for one of the source's; volumes on others go to the one of the same name.
    `timeout_s` is how long all of it may take, `stall_s` how long a phase may show no progress, in seconds: 0 is no
    limit, None is what the settings say. Raises Refused for what is neither and no time to wait.
    """

    offline: bool = False
    storage_map: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    stall_s: float | None = None

    def __post_init__(self) -> None:
        for what, seconds in (("time-out", self.timeout_s), ("stall time-out", self.stall_s)):
            if seconds is not None and not 0 <= seconds <= LONGEST_S:
                words = f"a {what} of {seconds:g} s is none"
                raise Refused("bad_time_out", words, f"Give seconds, at most {LONGEST_S:.0f}; 0 is no limit.")


def file_migration(context: Context, vm_name: str, *, target: str, terms: Terms = Terms()) -> int:
    """File a migration and start its chain. Returns its id.

    Raises Refused with all reasons; nothing is written then.
    """
    try:
        return _file(context, vm_name, target=target, terms=terms)
    except IntegrityError as error:
        # Somebody else filed one between our look and our row; SQL lets only one of us through.
        if not any(name in str(error.orig) for name in ("uq_migration_one_open", "migration.vm_id")):
            raise
        raise Refused("migration_open", f"VM {vm_name} is already in a migration", "haulier migration list") from error


def _file(context: Context, vm_name: str, *, target: str, terms: Terms) -> int:
    settings = context.settings
    with context.unit() as unit:
        vm, node = find_vm(unit.session, vm_name), find_node(unit.session, target)
        crossings = plan_crossings(unit.session, vm, node, offline=terms.offline, storage_map=terms.storage_map)
        if problems := refuse_filing(_filing_facts(context, unit.session, vm, node, crossings, terms)):
            raise Refused.because(problems)
        migration = Migration(
            vm_id=vm.id,
            source_id=vm.node_id,
            target_id=node.id,
            epoch=vm.epoch,
            offline=terms.offline,
            storage_map=dict(terms.storage_map),
            timeout_s=settings.migration_timeout_s if terms.timeout_s is None else terms.timeout_s,
            stall_s=settings.stall_timeout_s if terms.stall_s is None else terms.stall_s,
            created_at=now(),
            state=MigrationState.QUEUED,
        )
        unit.session.add(migration)
        unit.session.flush()
        unit.note("migration.queued", vm=vm.name, migration=migration.id, source=vm.node.name, target=node.name)
        attempt = start_attempt(unit, migration)
        file_transfers(unit, attempt, crossings)
        return migration.id


def _filing_facts(
    context: Context, session: Session, vm: Vm, target: Node, crossings: tuple[Crossing, ...], terms: Terms
) -> FilingFacts:
    limit_s = context.settings.node_silent_after_s
    return FilingFacts(
        vm=vm.name,
        vm_state=vm.state,
        vm_node=vm.node.name,
        target=target.name,
        offline=terms.offline,
        open_migration=session.scalar(
            select(Migration.id).where(Migration.vm_id == vm.id, Migration.state.in_(OPEN_MIGRATION))
        ),
        source_silent_s=silent_s(vm.node, limit_s=limit_s),
        target_silent_s=silent_s(target, limit_s=limit_s),
        target_state=target.state,
        choices=tuple(crossing.choice for crossing in crossings),
        open_operation=session.scalar(
            select(Operation.kind).where(Operation.vm_id == vm.id, Operation.state.in_(OPEN_OPERATION))
        ),
        missing_storages=tuple(sorted({each.to for each in crossings if each.storage is None})),
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
    """The newest migrations as contract.md shows them."""
    with context.database.read() as session:
        rows = session.scalars(select(Migration).order_by(Migration.id.desc()).limit(limit))
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
