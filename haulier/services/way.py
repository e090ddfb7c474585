"""A sync makes way: who wants to start, stop or migrate a VM does not wait until its replica is up to date."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select

from haulier.clock import now, steady_s
from haulier.services.context import Context, Unit
from haulier.services.lookup import find_vm
from models import Migration, MigrationState, Replication, Vm
from models.transitions import OPEN_MIGRATION

_LOOK_S = 0.5
_PATIENCE_S = 60.0
# Longer than we wait.
TRUCE = timedelta(seconds=90)


def make_way(context: Context, vm_name: str) -> None:
    """Cancel the VM's open sync, if there is one, and wait until it is over; its replica is the last generation then.

    One that is not over after a minute is found by whatever comes next as the open migration that it is. Raises Refused
    for an unknown VM.
    """
    with context.unit() as unit:
        sync_id = ask_to_make_way(unit, find_vm(unit.session, vm_name))
    if sync_id is None:
        return
    deadline = steady_s() + _PATIENCE_S
    with context.signals.listen(f"migration.{sync_id}") as bell:
        while _is_open(context, sync_id) and steady_s() < deadline:
            bell.wait(_LOOK_S)


def ask_to_make_way(unit: Unit, vm: Vm) -> int | None:
    """Cancel the VM's open sync without waiting for its end. Returns its number; None if there is none."""
    of_the_vm = (Migration.vm_id == vm.id, Migration.replication_id.is_not(None))
    sync = unit.session.scalar(select(Migration).where(*of_the_vm, Migration.state.in_(OPEN_MIGRATION)))
    if sync is None:
        return None
    # One that has been handed over is a moment from its end, and is only waited for.
    if sync.state in (MigrationState.QUEUED, MigrationState.RUNNING) and not sync.cancel_asked:
        # The beat must not file the next one before whoever wants the VM has got it. Locked in the order of those
        # who take a generation.
        replication = unit.session.get_one(Replication, sync.replication_id, with_for_update=True)
        sync.cancel_asked, replication.due_at = True, now() + TRUCE
        unit.note("sync.cancel_asked", vm=vm.name, migration=sync.id)
    return sync.id


def _is_open(context: Context, migration_id: int) -> bool:
    with context.database.read() as session:
        return session.get_one(Migration, migration_id).state in OPEN_MIGRATION
