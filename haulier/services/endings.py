"""An attempt has failed: its migration ends so, or waits to be tried again."""

from __future__ import annotations

import random
from datetime import timedelta

from sqlalchemy import select

from haulier.clock import now
from haulier.planner.failures import FailureClass, class_of, delay_s
from haulier.planner.placement import choose_host
from haulier.services.context import Unit
from haulier.services.hosts import hosts_now, ram_bytes_of, storages_of
from haulier.services.moves import move_migration
from models import Attempt, BatchState, Migration, MigrationState, Node, NodeState


def end_failed(unit: Unit, attempt: Attempt, to: MigrationState) -> None:
    """Close an attempt that is undone or was refused, and decide what follows; the caller holds its row.

    The migration goes to that state, or back into the queue, if its failure is of a class that another try may help
    and it has tries left.
    """
    migration = attempt.migration
    attempt.finished_at = now()
    attempt.problem = migration.problems[0] if migration.problems else None
    at_fault = class_of(attempt.problem["code"]) if attempt.problem else FailureClass.LASTING
    if (
        at_fault is FailureClass.LASTING
        or not _has_tries_left(migration, attempt)
        or _is_placed_anew(migration, at_fault)
    ):
        move_migration(unit, migration, to, finished_at=now())
        return
    chance = random.random()  # noqa: S311 - of no secret
    wait_s = delay_s(attempt.number, at_most_s=unit.context.settings.retry_at_most_s, chance=chance)
    if at_fault is FailureClass.TARGET and migration.target_auto:
        _choose_another(unit, migration)
    move_migration(unit, migration, MigrationState.QUEUED, not_before=now() + timedelta(seconds=wait_s))


def _is_placed_anew(migration: Migration, at_fault: FailureClass) -> bool:
    """An evacuation chooses another target, and knows whom it has sent where."""
    of_evacuation = migration.batch is not None and migration.batch.evacuation_id is not None
    return at_fault is FailureClass.TARGET and of_evacuation


def _has_tries_left(migration: Migration, attempt: Attempt) -> bool:
    """Somebody who gave it up, or the batch, or the host that its VM was on, wants no other try."""
    given_up = migration.cancel_asked or (migration.batch is not None and migration.batch.state is BatchState.CANCELLED)
    source_lost = migration.source.state is NodeState.LOST
    sync = migration.replication_id is not None
    return attempt.number < migration.tries and not (given_up or source_lost or sync)


def _choose_another(unit: Unit, migration: Migration) -> None:
    """Another target that has not failed yet; if there is none, the same is tried again."""
    tried = frozenset(each.target.name for each in migration.attempts if each.target is not None)
    vm, session = migration.vm, unit.session
    hosts = hosts_now(unit.context, session)
    host = choose_host(hosts, source=vm.node.name, ram_bytes=ram_bytes_of(vm), storages=storages_of(vm), but=tried)
    if host is not None:
        migration.target = session.scalars(select(Node).where(Node.name == host.name)).one()
        session.flush()
