"""How work on a VM between two nodes is filed, a migration or a sync: what is asked first, and its row."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.definition.values import label_name
from haulier.errors import Refused
from haulier.planner.admission import MOST_PRIORITY, rank
from haulier.planner.refusals import FilingFacts, MissingStorage
from haulier.services.context import Context, Unit
from haulier.services.liveness import silent_s
from haulier.services.surroundings import Surroundings, look_around
from haulier.services.transfers import Crossing, plan_crossings
from haulier.settings import LONGEST_S, Settings
from models import Migration, MigrationState, Node, Operation, Replication, Vm
from models.transitions import AT_WORK, OPEN_MIGRATION, OPEN_OPERATION

USUAL_PRIORITY = 50
MOST_TRIES = 100


def require_priority(priority: int) -> None:
    """Raise Refused for a number that is far beyond all others."""
    if abs(priority) > MOST_PRIORITY:
        hint = "An evacuation has 100, a migration 50, rebalancing 20."
        raise Refused("bad_priority", f"{priority} is no priority", hint)


@dataclass(frozen=True, slots=True)
class Terms:
    """How a VM is to be migrated.

    `storage_map` names the target's storage for one of the source's; volumes on others go to the one of the same name.
    `timeout_s` is how long a try of it may take, `stall_s` how long a phase may show no progress, in seconds: 0 is no
    limit, None is what the settings say. Raises Refused for what is neither and no time to wait. Of two that wait, the
    one of the higher `priority` goes first, if the other was not filed much earlier. It is begun `tries` times at most,
    if its failures are of a kind that another try may help. A `label` is what those are held by that have it. A guest
    that does not settle and `may_pause` stands still for as long as the rest of its RAM takes.
    """

    offline: bool = False
    storage_map: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    stall_s: float | None = None
    priority: int = USUAL_PRIORITY
    tries: int = 1
    label: str | None = None
    may_pause: bool = False

    def __post_init__(self) -> None:
        for what, seconds in (("time-out", self.timeout_s), ("stall time-out", self.stall_s)):
            if seconds is not None and not 0 <= seconds <= LONGEST_S:
                words = f"a {what} of {seconds:g} s is none"
                raise Refused("bad_time_out", words, f"Give seconds, at most {LONGEST_S:.0f}; 0 is no limit.")
        require_priority(self.priority)
        if self.label is not None:
            label_name(self.label)
        if not 1 <= self.tries <= MOST_TRIES:
            raise Refused("bad_tries", f"{self.tries} tries are none", f"1 to {MOST_TRIES}.")


USUAL_TERMS = Terms()


def terms_of(migration: Migration) -> Terms:
    """The terms on which a migration was filed."""
    return Terms(
        offline=migration.offline,
        storage_map=migration.storage_map or {},
        timeout_s=migration.timeout_s,
        stall_s=migration.stall_s,
        priority=migration.priority,
        tries=migration.tries,
        label=migration.label,
        may_pause=migration.may_pause,
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """How the volumes would cross now, and what there is to be known of the VM and the two nodes."""

    crossings: tuple[Crossing, ...]
    facts: FilingFacts
    ram_bytes: int

    @property
    def bytes(self) -> int:
        """What is to cross, RAM included, as far as it is known."""
        return self.ram_bytes + sum(each.volume.size_bytes or 0 for each in self.crossings if not each.stays)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A VM, the node that it is to go to, and how."""

    vm: Vm
    target: Node
    terms: Terms
    planned_bytes: int = 0


def plan_migration(
    context: Context, session: Session, vm: Vm, target: Node, terms: Terms, *, but: int | None = None
) -> Plan:
    """Plan a migration of a VM, which has no other open one `but` this. A sync would make way. Touches nothing."""
    return plan_migrations(context, session, [Wanted(vm, target, terms)], but=[but] if but else [])[0]


def plan_migrations(
    context: Context, session: Session, wanted: Sequence[Wanted], *, but: Collection[int] = ()
) -> list[Plan]:
    """Plan a migration of each of these VMs, in their order: in as many statements as of one, if their nodes are in the
    session. They have no open ones but these.
    """
    ids = [each.vm.id for each in wanted]
    there = look_around(session, [each.vm for each in wanted], [each.target for each in wanted])
    wishes = (Migration.replication_id.is_(None), Migration.state.in_(OPEN_MIGRATION), Migration.id.not_in(but))
    open_, operations = _open_migrations(session, ids, *wishes), _open_operations(session, ids)
    return [_plan(context, there, each, open_.get(each.vm.id), operations.get(each.vm.id)) for each in wanted]


def _plan(context: Context, there: Surroundings, wanted: Wanted, migration: int | None, operation: str | None) -> Plan:
    vm, target, terms = wanted.vm, wanted.target, wanted.terms
    crossings = plan_crossings(there, vm, target, offline=terms.offline, storage_map=terms.storage_map)
    missing = sorted({(each.to, each.volume.storage.name) for each in crossings if each.storage is None})
    facts = dataclasses.replace(
        _facts(context, vm, target, offline=terms.offline),
        open_migration=migration,
        open_operation=operation,
        choices=tuple(crossing.choice for crossing in crossings),
        missing_storages=tuple(MissingStorage(to, source) for to, source in missing),
        names_taken=tuple(f"{each.to}:{each.volume.name}" for each in crossings if each.name_is_taken),
        unused_maps=tuple(sorted(set(terms.storage_map) - {each.volume.storage.name for each in crossings})),
    )
    ram_bytes = 0 if terms.offline else int(vm.pinned.get("ram_kib", 0)) * 1024
    return Plan(crossings, facts, ram_bytes)


def filing_facts(context: Context, session: Session, vm: Vm, target: Node, *, offline: bool) -> FilingFacts:
    """What is known of the VM and the two nodes, without the volumes; a migration that waits is none that is open."""
    return dataclasses.replace(
        _facts(context, vm, target, offline=offline),
        open_migration=_open_migrations(session, [vm.id], Migration.state.in_(AT_WORK)).get(vm.id),
        open_operation=_open_operations(session, [vm.id]).get(vm.id),
    )


def _facts(context: Context, vm: Vm, target: Node, *, offline: bool) -> FilingFacts:
    limit_s = context.settings.node_silent_after_s
    return FilingFacts(
        vm=vm.name,
        vm_state=vm.state,
        vm_node=vm.node.name,
        target=target.name,
        offline=offline,
        open_migration=None,
        source_silent_s=silent_s(vm.node, limit_s=limit_s),
        target_silent_s=silent_s(target, limit_s=limit_s),
        target_state=target.state,
    )


def _open_migrations(session: Session, vms: Collection[int], *those: ColumnElement[bool]) -> dict[int, int]:
    """Those that there are of each of these VMs."""
    rows = session.execute(select(Migration.vm_id, Migration.id).where(Migration.vm_id.in_(vms), *those))
    return {row.vm_id: row.id for row in rows}


def _open_operations(session: Session, vms: Collection[int]) -> dict[int | None, str]:
    open_ = (Operation.vm_id.in_(vms), Operation.state.in_(OPEN_OPERATION))
    return {row.vm_id: row.kind for row in session.execute(select(Operation.vm_id, Operation.kind).where(*open_))}


def values_of(settings: Settings, wanted: Wanted, *, at: datetime, place: int = 0) -> dict[str, Any]:
    """The row of a migration that is filed at this moment, the how manieth of its batch, from 0 on."""
    vm, terms = wanted.vm, wanted.terms
    return {
        "vm_id": vm.id,
        "source_id": vm.node_id,
        "target_id": wanted.target.id,
        "epoch": vm.epoch,
        "offline": terms.offline,
        "priority": terms.priority,
        "label": terms.label,
        "may_pause": terms.may_pause,
        "tries": terms.tries,
        "rank": rank(at.timestamp(), priority=terms.priority, place=place),
        "storage_map": dict(terms.storage_map),
        "planned_bytes": wanted.planned_bytes,
        "timeout_s": settings.migration_timeout_s if terms.timeout_s is None else terms.timeout_s,
        "stall_s": settings.stall_timeout_s if terms.stall_s is None else terms.stall_s,
        "created_at": at,
        "state": MigrationState.QUEUED,
    }


def meets_another(error: IntegrityError) -> bool:
    """Whether a migration could not be written because somebody else has filed one of its VM in this moment."""
    return any(name in str(error.orig) for name in ("uq_migration_one_wish", "migration.vm_id"))


def write_migration(
    context: Context, unit: Unit, wanted: Wanted, *, replication: Replication | None = None
) -> Migration:
    """Write a migration that waits; of a `replication` it is a sync."""
    migration = Migration(
        **values_of(context.settings, wanted, at=now()), replication_id=replication and replication.id
    )
    unit.session.add(migration)
    unit.session.flush()
    vm, kind = wanted.vm, "sync" if replication else "migration"
    unit.note(f"{kind}.queued", vm=vm.name, migration=migration.id, source=vm.node.name, target=wanted.target.name)
    return migration
