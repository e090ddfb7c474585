"""VMs that are stopped for their move, because somebody consented to it, and started again wherever they are then.

What is to be started again is written down before it is stopped. Whatever becomes of the evacuation, and whoever dies:
as long as that stands there, beat has it looked at.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Refused
from haulier.planner.refusals import STARTED
from haulier.services.context import Context, Unit
from haulier.services.evacuation_rows import find_evacuation
from haulier.services.evacuation_view import show_evacuation
from haulier.services.lookup import find_vm
from haulier.services.operations import file_operation, require_free
from haulier.services.stopped import STOP_IS_OPEN, start_problem
from haulier.services.waiting import go_on_message
from models import (
    Evacuation,
    EvacuationPolicy,
    EvacuationState,
    EvacuationVm,
    Migration,
    Operation,
    OperationKind,
    Vm,
)
from models.transitions import OPEN_MIGRATION, OPEN_OPERATION

# A guest that has not powered off in this time is ended.
GRACE_S = 120.0
_GOES_ON = (EvacuationState.PLANNED, EvacuationState.RUNNING, EvacuationState.BLOCKED)


def consent(context: Context, evacuation_id: int, name: str) -> dict[str, Any]:
    """Let a VM that cannot leave while it runs be stopped for its move; it is started again where it is then.

    Raises Refused for one that is not held, or whose policy does not ask for consent; nothing was changed then.
    """
    with context.unit() as unit:
        evacuation = find_evacuation(unit.session, evacuation_id)
        vm = find_vm(unit.session, name)
        row = unit.session.get(EvacuationVm, (evacuation_id, vm.id), with_for_update=True)
        if vm.evacuation is not EvacuationPolicy.STOP_BY_CONSENT:
            hint = f"haulier vm set {name} --evacuation stop_by_consent"
            raise Refused("no_consent_asked", f"VM {name} has the policy {vm.evacuation}", hint)
        if row is None or row.problem is None or vm.node_id != evacuation.node_id or evacuation.state not in _GOES_ON:
            hint = f"haulier evacuation show {evacuation_id}"
            raise Refused("no_consent_asked", f"VM {name} is not held in evacuation {evacuation_id}", hint)
        row.consent_at = now()
        row.tried_after = unit.session.scalar(select(func.max(Migration.id))) or 0
        unit.note("evacuation.consent", vm=name, node=evacuation.node.name, evacuation=evacuation_id)
        unit.send(go_on_message(evacuation_id))
    follow_consents(context)
    return show_evacuation(context, evacuation_id)


def follow_consents(context: Context) -> None:
    """Stop those that may be stopped, and start again those that were. Safe to call at any time, by many."""
    query = select(EvacuationVm.evacuation_id, Vm.name).join(Vm, Vm.id == EvacuationVm.vm_id).where(STOP_IS_OPEN)
    with context.database.read() as session:
        found = [(row[0], row[1]) for row in session.execute(query.order_by(Vm.name))]
    for evacuation_id, name in found:
        with context.unit() as unit:
            _follow(unit, evacuation_id, name)


def _follow(unit: Unit, evacuation_id: int, name: str) -> None:
    """What is to be done now for one of them; the VM is locked, so that nobody else files anything for it."""
    vm = find_vm(unit.session, name, lock=True)
    row = unit.session.get_one(EvacuationVm, (evacuation_id, vm.id), populate_existing=True)
    if is_busy(unit.session, vm):
        return
    hopes = _may_still_move(row, vm)
    if vm.state in STARTED:
        if hopes:
            _stop(unit, row, vm)
        else:
            # Moved or not, it runs again, or somebody has started it.
            row.consent_at = row.stopped_at = None
            unit.send(go_on_message(evacuation_id))
    elif row.stopped_at is not None and not hopes and start_problem(unit.session, row, vm) is None:
        file_operation(unit, vm, OperationKind.START)
        unit.note("evacuation.starting", vm=name, node=vm.node.name, evacuation=evacuation_id)


def is_busy(session: Session, vm: Vm) -> bool:
    """Whether a migration or an operation of a VM is open."""
    migrating = select(Migration.id).where(
        Migration.vm_id == vm.id, Migration.state.in_(OPEN_MIGRATION), Migration.replication_id.is_(None)
    )
    working = select(Operation.id).where(Operation.vm_id == vm.id, Operation.state.in_(OPEN_OPERATION))
    return session.scalar(migrating.limit(1)) is not None or session.scalar(working.limit(1)) is not None


def _may_still_move(row: EvacuationVm, vm: Vm) -> bool:
    """Whether it is to leave, stopped, and nothing has come between."""
    evacuation: Evacuation = row.evacuation
    is_there = vm.node_id == evacuation.node_id and evacuation.state in _GOES_ON
    # What holds it was there before the consent, until it has failed again.
    return is_there and row.consent_at is not None and not (row.stopped_at is not None and row.problem is not None)


def _stop(unit: Unit, row: EvacuationVm, vm: Vm) -> None:
    try:
        require_free(unit, vm)
    except Refused:
        # A sync is at work, and ends by itself.
        return
    row.stopped_at, row.problem = now(), None
    file_operation(unit, vm, OperationKind.STOP, grace_s=GRACE_S)
    unit.note("evacuation.stopping", vm=vm.name, node=vm.node.name, evacuation=row.evacuation_id)
