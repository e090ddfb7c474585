"""Replications as people see them: asked for, listed, ended; and the beat that files their syncs when they are due."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.planner.failures import delay_s
from haulier.services.context import Context, Unit
from haulier.services.generations import file_sync
from haulier.services.lookup import find_node, find_vm
from haulier.services.operations import await_operation, file_operation, require_free, require_worker
from haulier.services.replicas import drop_rows
from haulier.services.way import make_way
from haulier.settings import LONGEST_S
from models import (
    Migration,
    MigrationState,
    NodeState,
    OperationKind,
    Replication,
    Vm,
    VmState,
    VolumeTransfer,
)
from models.transitions import AT_WORK, OPEN_MIGRATION


def replicate(context: Context, vm_name: str, *, target: str, every_s: float | None) -> int:
    """Have a replica of a VM kept on another node: a sync is filed now, and with `every_s` (seconds) again and again.

    Asked for again, it changes how often. Returns the id of the sync, which may be one that was under way already.
    Raises Refused with all reasons; nothing is written then.
    """
    if every_s is not None and not 0 < every_s <= LONGEST_S:
        raise Refused("bad_every", f"every {every_s:g} s is no interval", f"More than 0 s, at most {LONGEST_S:.0f}.")
    try:
        with context.unit() as unit:
            vm, node = find_vm(unit.session, vm_name, lock=True), find_node(unit.session, target)
            replication = _find(unit.session, vm.id, node.id)
            if replication is None:
                replication = Replication(vm_id=vm.id, target_id=node.id, vm=vm, target=node, created_at=now())
                unit.session.add(replication)
                unit.session.flush()
                unit.note("replication.asked_for", vm=vm.name, node=node.name, every_s=every_s)
            replication.every_s = every_s if every_s is not None else replication.every_s
            running = _newest_sync(unit.session, replication.id)
            if running is not None and running.state in OPEN_MIGRATION:
                return running.id
            return file_sync(context, unit, replication).id
    except IntegrityError as error:
        # Somebody else has filed something between our look and our rows; SQL lets only one of us through.
        raise Refused("migration_open", f"VM {vm_name} is already in a migration", "haulier migration list") from error


def end_replication(context: Context, vm_name: str, *, target: str) -> None:
    """Want a replica no more: its files are removed; those of a node that was declared lost stay there.

    Raises Refused when there is none, or its node does not answer.
    """
    make_way(context, vm_name)
    with context.unit() as unit:
        vm, node = find_vm(unit.session, vm_name, lock=True), find_node(unit.session, target)
        replication = _find(unit.session, vm.id, node.id)
        if replication is None:
            raise Refused("no_replication", f"VM {vm_name} is not replicated to {target}", "haulier replication list")
        require_free(unit, vm)
        if vm.state is VmState.LOST:
            hint = f"haulier recover {vm_name} --on {target}, or start the VM where it is."
            raise Refused("vm_lost", f"VM {vm_name} is lost, and this may be the newest of it that is left", hint)
        if node.state is NodeState.LOST:
            drop_rows(unit, replication)
            return
        require_worker(context, node)
        replication.every_s = replication.due_at = None
        operation = file_operation(unit, vm, OperationKind.DROP_REPLICA, node=node, replication=replication.id)
    await_operation(context, operation.id)


def list_replications(context: Context) -> list[dict[str, Any]]:
    """All replications as contract.md shows them, by VM and target."""
    with context.database.read() as session:
        rows = session.scalars(select(Replication).where(Replication.ended_at.is_(None)))
        return sorted((_document(session, row) for row in rows), key=lambda each: (each["vm"], each["target"]))


def show_replication(context: Context, vm_name: str, *, target: str) -> dict[str, Any]:
    """One of them. Raises Refused for one that is not."""
    with context.database.read() as session:
        replication = _find(session, find_vm(session, vm_name).id, find_node(session, target).id)
        if replication is None:
            raise Refused("no_replication", f"VM {vm_name} is not replicated to {target}", "haulier replication list")
        return _document(session, replication)


def _find(session: Session, vm_id: int, target_id: int) -> Replication | None:
    return session.scalar(
        select(Replication).where(
            Replication.vm_id == vm_id, Replication.target_id == target_id, Replication.ended_at.is_(None)
        )
    )


def _newest_sync(session: Session, replication_id: int, *states: MigrationState) -> Migration | None:
    wanted = [Migration.replication_id == replication_id, *([Migration.state.in_(states)] if states else [])]
    return session.scalar(select(Migration).where(*wanted).order_by(Migration.id.desc()).limit(1))


def _document(session: Session, replication: Replication) -> dict[str, Any]:
    newest = _newest_sync(session, replication.id)
    brought = _newest_sync(session, replication.id, MigrationState.HANDED_OVER, MigrationState.DONE)
    synced = replication.synced_at
    return {
        "vm": replication.vm.name,
        "source": replication.vm.node.name,
        "target": replication.target.name,
        "state": _state(replication, newest),
        "generation": replication.generation,
        "synced_at": synced.isoformat() if synced else None,
        "lag_s": round((now() - synced).total_seconds(), 1) if synced else None,
        "bytes": brought and _bytes_of(session, brought),
        "every_s": replication.every_s,
        "due_at": replication.due_at.isoformat() if replication.due_at else None,
        "failures": replication.failures,
        "sync": newest and newest.id,
        "error": _why(replication, newest),
    }


def _why(replication: Replication, newest: Migration | None) -> dict[str, Any] | None:
    """Why the newest try came to nothing, also of one that could not even be filed."""
    if not _came_to_nothing(replication, newest):
        return None
    return replication.problem or (newest.problems[0] if newest and newest.problems else None)


def _state(replication: Replication, newest: Migration | None) -> str:
    if replication.vm.node_id == replication.target_id:
        return "idle"
    if newest is not None and newest.state in OPEN_MIGRATION:
        return "needs_operator" if newest.needs_operator else "syncing"
    if _came_to_nothing(replication, newest):
        return "failed"
    return "current" if replication.synced_at else "new"


def _came_to_nothing(replication: Replication, newest: Migration | None) -> bool:
    """Whether the newest try failed. One that made way did not, and what turned round since is newer than any."""
    if replication.failures:
        return True
    failed = newest is not None and newest.state in (MigrationState.UNDONE, MigrationState.REFUSED)
    turned = newest is not None and replication.synced_at is not None and replication.synced_at > newest.created_at
    return failed and not turned


def _bytes_of(session: Session, sync: Migration) -> int:
    attempts = [attempt.id for attempt in sync.attempts]
    total = select(func.sum(VolumeTransfer.bytes)).where(VolumeTransfer.attempt_id.in_(attempts))
    return int(session.scalar(total) or 0)


def sweep_replications(context: Context) -> None:
    """File the syncs that are due, and fix when the next one of the others is. Safe to call at any time."""
    moment = now()
    with context.database.read() as session:
        busy = select(Migration.vm_id).where(Migration.state.in_(AT_WORK))
        due = or_(Replication.due_at.is_(None), Replication.due_at <= moment)
        wanted = (Replication.every_s.is_not(None), Replication.ended_at.is_(None), due, Replication.vm_id.not_in(busy))
        ids = list(session.scalars(select(Replication.id).where(*wanted).order_by(Replication.due_at)))
    for replication_id in ids:
        try:
            with context.unit() as unit:
                _look_after(context, unit, unit.session.get_one(Replication, replication_id))
        except IntegrityError:
            continue  # somebody else was first


def _look_after(context: Context, unit: Unit, replication: Replication) -> None:
    # In the order in which everybody else locks the two.
    unit.session.get_one(Vm, replication.vm_id, with_for_update=True)
    unit.session.refresh(replication, with_for_update=True)
    if (
        replication.every_s is None
        or replication.vm.node_id == replication.target_id
        or not _is_free(unit, replication)
    ):
        return
    if replication.due_at is None:
        replication.due_at = _next_at(unit, replication, replication.every_s)
    if replication.due_at > now():
        return
    try:
        file_sync(context, unit, replication)
    except Refused as error:
        _failed(unit, replication, replication.every_s, error.problems)


def _is_free(unit: Unit, replication: Replication) -> bool:
    """Whether nothing works on the VM; another replication's sync may have begun since we looked for what is due."""
    try:
        require_free(unit, replication.vm)
    except Refused:
        return False
    return True


def _next_at(unit: Unit, replication: Replication, every_s: float) -> datetime:
    """When the next sync is due, by how the newest one ended."""
    newest = _newest_sync(unit.session, replication.id)
    if newest is None or newest.state is MigrationState.CANCELLED:
        return now()
    if newest.state is MigrationState.DONE:
        return newest.created_at + timedelta(seconds=every_s)
    return _failed(unit, replication, every_s, tuple(Problem(**problem) for problem in newest.problems))


def _failed(unit: Unit, replication: Replication, every_s: float, problems: tuple[Problem, ...]) -> datetime:
    """Count it, tell why, and say when it is tried again: later each time."""
    replication.failures += 1
    replication.problem = problems[0].as_dict() if problems else None
    wait_s = delay_s(replication.failures, at_most_s=every_s, chance=random.random())  # noqa: S311 - of no secret
    replication.due_at = now() + timedelta(seconds=wait_s)
    unit.note(
        "replication.failed",
        vm=replication.vm.name,
        node=replication.target.name,
        failures=replication.failures,
        again_at=replication.due_at.isoformat(),
        problem=replication.problem,
    )
    return replication.due_at
