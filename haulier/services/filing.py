"""How work on a VM between two nodes is filed, a migration or a sync: what is asked first, the rows of its begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Refused
from haulier.planner.refusals import FilingFacts
from haulier.services.chain import start_attempt
from haulier.services.context import Context, Unit
from haulier.services.nodes import silent_s
from haulier.settings import LONGEST_S
from models import Attempt, Migration, MigrationState, Node, Operation, Replication, Vm
from models.transitions import OPEN_MIGRATION, OPEN_OPERATION


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


USUAL_TERMS = Terms()


def filing_facts(context: Context, session: Session, vm: Vm, target: Node, *, offline: bool) -> FilingFacts:
    """What is known of the VM and the two nodes, without the volumes."""
    limit_s = context.settings.node_silent_after_s
    return FilingFacts(
        vm=vm.name,
        vm_state=vm.state,
        vm_node=vm.node.name,
        target=target.name,
        offline=offline,
        open_migration=session.scalar(
            select(Migration.id).where(Migration.vm_id == vm.id, Migration.state.in_(OPEN_MIGRATION))
        ),
        source_silent_s=silent_s(vm.node, limit_s=limit_s),
        target_silent_s=silent_s(target, limit_s=limit_s),
        target_state=target.state,
        open_operation=session.scalar(
            select(Operation.kind).where(Operation.vm_id == vm.id, Operation.state.in_(OPEN_OPERATION))
        ),
    )


def open_migration(
    context: Context, unit: Unit, vm: Vm, target: Node, terms: Terms, *, replication: Replication | None = None
) -> Attempt:
    """Write a migration with its first attempt and steps, the first of them ready; of a `replication` it is a sync."""
    settings = context.settings
    migration = Migration(
        vm_id=vm.id,
        source_id=vm.node_id,
        target_id=target.id,
        epoch=vm.epoch,
        offline=terms.offline,
        storage_map=dict(terms.storage_map),
        replication_id=replication and replication.id,
        timeout_s=settings.migration_timeout_s if terms.timeout_s is None else terms.timeout_s,
        stall_s=settings.stall_timeout_s if terms.stall_s is None else terms.stall_s,
        created_at=now(),
        state=MigrationState.QUEUED,
    )
    unit.session.add(migration)
    unit.session.flush()
    kind = "sync" if replication else "migration"
    unit.note(f"{kind}.queued", vm=vm.name, migration=migration.id, source=vm.node.name, target=target.name)
    return start_attempt(unit, migration)
