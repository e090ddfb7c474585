"""A node is declared lost: a person says that the host is off, and what waits for it waits no longer.

Nothing else in Haulier takes a silent node for a dead one: its guests may be running well.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import or_, select

from haulier.clock import now, steady_s
from haulier.errors import Problem, Refused
from haulier.services.allocations import put_away
from haulier.services.chain import release
from haulier.services.context import Context, Unit
from haulier.services.liveness import silent_s
from haulier.services.lookup import find_node
from haulier.services.moves import remember
from haulier.services.nodes import show_node
from haulier.services.operations import end_operation
from haulier.services.steps import advance_undo, finish_if_done, forget_side, roll_back
from haulier.services.waiting import make_room
from models import (
    Attempt,
    Migration,
    MigrationState,
    Node,
    NodeState,
    Operation,
    OperationState,
    Replica,
    Replication,
    Side,
    TransferMethod,
    Vm,
    VmState,
)
from models.transitions import AT_WORK, OPEN_OPERATION


def declare_lost(context: Context, name: str, *, is_off: bool) -> dict[str, Any]:
    """Write down that a node's host is off: its VMs are lost, its side of every migration is over. Safe to call twice.

    `is_off` is the word of the person who asks. Raises Refused without it, and for a node whose worker lives: it is
    listened to for as long as it may be silent, because the clocks of two hosts may differ.
    """
    limit_s = context.settings.node_silent_after_s
    beat = _last_beat(context, name, listen_s=limit_s if is_off else 0.0)
    with context.unit() as unit:
        node = find_node(unit.session, name)
        if not is_off:
            hint = "Only if the host is off for certain: add --yes-it-is-off."
            raise Refused("not_confirmed", f"guests of {name} would run twice if it were not off", hint)
        if silent_s(node, limit_s=limit_s) is None or node.heartbeat_at != beat:
            hint = f"Stop the host first. A worker that is not heard for {limit_s:g} s counts as silent."
            raise Refused("node_alive", f"the worker of node {name} lives, or was heard just now", hint)
        if node.state is not NodeState.LOST:
            node.state = NodeState.LOST
            unit.note("node.lost", node=name)
        for vm in unit.session.scalars(
            select(Vm).where(Vm.node_id == node.id, Vm.state.in_((VmState.RUNNING, VmState.PAUSED)))
        ):
            vm.state, vm.pid, vm.qmp, vm.run_state = VmState.LOST, None, None, None
            unit.note("vm.lost", vm=vm.name, node=name)
        here = or_(Migration.source_id == node.id, Migration.target_id == node.id)
        for migration in unit.session.scalars(select(Migration).where(here, Migration.state.in_(AT_WORK))):
            _give_up_side(unit, migration, node)
        # What waits to go there is refused now.
        make_room(unit)
        working = (Operation.node_id == node.id, Operation.state.in_(OPEN_OPERATION))
        for operation in unit.session.scalars(select(Operation).where(*working)):
            end_operation(unit, operation.id, OperationState.FAILED, (_lost(node),), not_taken=True)
        lost_vms = [_lost_vm(unit, vm) for vm in unit.session.scalars(select(Vm).where(Vm.node_id == node.id))]
    return {**show_node(context, name), "lost_vms": lost_vms}


def _last_beat(context: Context, name: str, *, listen_s: float) -> datetime | None:
    """The node's beat before it was listened to for so long, unless it has none, or lives by the time of its beat."""
    with context.database.read() as session:
        node = find_node(session, name)
        first = node.heartbeat_at
        if first is None or silent_s(node, limit_s=context.settings.node_silent_after_s) is None:
            return first
    until = steady_s() + listen_s
    with context.signals.listen("nodes") as bell:
        while (left_s := until - steady_s()) > 0:
            bell.wait(left_s)
    return first


def _lost_vm(unit: Unit, vm: Vm) -> dict[str, Any]:
    """Where a VM of the node has a replica, and how old in seconds it is there."""
    live = (Replication.vm_id == vm.id, Replication.ended_at.is_(None), Replication.target_id != vm.node_id)
    kept = [each for each in unit.session.scalars(select(Replication).where(*live)) if each.replicas]
    ages = {each.target.name: (now() - each.synced_at).total_seconds() for each in kept if each.synced_at}
    return {"vm": vm.name, "replicas_on": [each.target.name for each in kept], "lag_s": ages}


def _lost(node: Node) -> Problem:
    return Problem("node_lost", f"node {node.name} was declared lost", f"haulier node show {node.name}")


def _give_up_side(unit: Unit, migration: Migration, node: Node) -> None:
    """What its side of a migration would still do is not waited for."""
    attempt = unit.session.get_one(Attempt, migration.attempts[-1].id, with_for_update=True, populate_existing=True)
    side = Side.SOURCE if migration.source_id == node.id else Side.TARGET
    if migration.state is MigrationState.HANDED_OVER and side is Side.TARGET and migration.replication_id is None:
        # The source still has the volumes as they were in the pause, which no replica can be newer than.
        words = f"{migration.vm.name} was handed over to {node.name}, which is lost; {migration.source.name} has it yet"
        migration.needs_operator = True
        remember(migration, (Problem("lost_after_hand_over", words, "Its volumes there are as of the hand-over."),))
        unit.note("migration.needs_operator", vm=migration.vm.name, migration=migration.id)
        return
    forget_side(unit, attempt, side)
    if migration.state is MigrationState.HANDED_OVER:
        if side is Side.SOURCE and migration.replication_id is None:
            _put_source_away(unit, attempt, node)
        release(unit, attempt)
        finish_if_done(unit, attempt)
        return
    remember(migration, (_lost(node),))
    if migration.state is MigrationState.RUNNING:
        roll_back(unit, migration, attempt)
    else:
        advance_undo(unit, attempt)


def _put_source_away(unit: Unit, attempt: Attempt, node: Node) -> None:
    """The VM's old volumes were to be freed there: when the node is back they are kept for a while, and go."""
    for transfer in attempt.transfers:
        source, target = transfer.source_storage, transfer.target_storage
        stays = source.shared and target.shared and source.name == target.name
        kept = select(Replica.id).where(Replica.storage_id == source.id, Replica.name == transfer.source_name)
        if not stays and transfer.method is not TransferMethod.NONE and unit.session.scalar(kept) is None:
            put_away(unit.session, attempt.id, node.id, Path(source.path) / transfer.source_name)
