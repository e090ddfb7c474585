"""VMs that are stopped for their move, because somebody consented to it, and started again wherever they are then.

What is to be started again is written down with its stop, and as long as that stands there, beat has it looked at,
whatever becomes of the evacuation and whoever dies. What is done is decided in planner/consents.py.
"""

from __future__ import annotations

from typing import Any

import structlog
from sqlalchemy import func, select

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.planner.consents import decide_consent
from haulier.services.cluster import Question
from haulier.services.consent_acts import ACTS
from haulier.services.consent_case import MOVES, Case, finding_of, room_left
from haulier.services.context import Context, Unit
from haulier.services.evacuation_plan import plan_moves, to_place
from haulier.services.evacuation_rows import find_evacuation, look
from haulier.services.evacuation_view import show_evacuation
from haulier.services.lookup import find_vm
from haulier.services.operations import require_no_operation
from haulier.services.room import ADMISSION
from haulier.services.stopped import STOP_IS_OPEN
from haulier.services.waiting import go_on_message
from models import Evacuation, EvacuationPolicy, EvacuationVm, Migration, Node, Vm, VmState

log = structlog.get_logger()
_ORDER = (EvacuationVm.consent_at, EvacuationVm.evacuation_id, EvacuationVm.vm_id)


def consent(context: Context, evacuation_id: int, name: str) -> dict[str, Any]:
    """Let a VM that cannot leave while it runs be stopped for its move; it is started again where it is then.

    Raises Refused for one that does not run, or is not held in an evacuation that goes on, or whose policy does not ask
    for consent, and with the reason for one that could not move while it is stopped either; nothing was changed then.
    """
    with context.database.read() as session:
        evacuation, vm = find_evacuation(session, evacuation_id), find_vm(session, name)
        vm_id, row = vm.id, session.get(EvacuationVm, (evacuation_id, vm.id))
        is_new = _require_held(evacuation, vm, row)
    if is_new:
        place = _find_place(context, evacuation_id, vm_id)
        if isinstance(place, Problem):
            raise Refused.because((place,))
        _write_consent(context, evacuation_id, vm_id)
        follow_consents(context)
    return show_evacuation(context, evacuation_id)


def _require_held(evacuation: Evacuation, vm: Vm, row: EvacuationVm | None) -> bool:
    """Says whether the consent is a new one. Raises Refused where none is asked for."""
    if vm.evacuation is not EvacuationPolicy.STOP_BY_CONSENT:
        hint = f"haulier vm set {vm.name} --evacuation stop_by_consent"
        raise Refused("no_consent_asked", f"VM {vm.name} has the policy {vm.evacuation}", hint)
    hint = f"haulier evacuation show {evacuation.id}"
    if evacuation.state not in MOVES:
        raise Refused("no_consent_asked", f"evacuation {evacuation.id} is {evacuation.state}", hint)
    if row is not None and row.consent_at is not None:
        return False
    if row is None or vm.node_id != evacuation.node_id or row.problem is None or row.stopped_at is not None:
        raise Refused("no_consent_asked", f"VM {vm.name} is not held in evacuation {evacuation.id}", hint)
    if vm.state is not VmState.RUNNING:
        raise Refused("no_consent_asked", f"VM {vm.name} is {vm.state}, and only one that runs is stopped", hint)
    return True


def _write_consent(context: Context, evacuation_id: int, vm_id: int) -> None:
    with context.unit() as unit:
        evacuation, vm, row = _lock(unit, evacuation_id, vm_id)
        if _require_held(evacuation, vm, row):
            row.consent_at, row.problem = now(), None
            row.tried_after = unit.session.scalar(select(func.max(Migration.id))) or 0
            unit.note("evacuation.consent", vm=vm.name, node=vm.node.name, evacuation=evacuation_id)
            unit.send(go_on_message(evacuation_id))


def _lock(unit: Unit, evacuation_id: int, vm_id: int) -> tuple[Evacuation, Vm, EvacuationVm]:
    """Nobody else files anything for the VM, begins it or places it before the transaction ends; neither is its node
    declared lost.
    """
    session = unit.session
    unit.context.database.exclude_others(session, ADMISSION)
    evacuation = session.get_one(Evacuation, evacuation_id, with_for_update={"of": Evacuation}, populate_existing=True)
    # Whoever files work on a VM of this node refers to its row, and may go on.
    here = select(Vm.node_id).where(Vm.id == vm_id).scalar_subquery()
    node = select(Node).where(Node.id == here).with_for_update(key_share=True, of=Node)
    session.scalars(node.execution_options(populate_existing=True)).all()
    vm = session.get_one(Vm, vm_id, with_for_update={"of": Vm}, populate_existing=True)
    return (
        evacuation,
        vm,
        session.get_one(EvacuationVm, (evacuation_id, vm_id), with_for_update=True, populate_existing=True),
    )


def _find_place(context: Context, evacuation_id: int, vm_id: int) -> str | Problem:
    """Where a VM could go if it were stopped, and started there: a node, or why there is none. Touches nothing."""
    with context.database.read() as session:
        evacuation, vm = session.get_one(Evacuation, evacuation_id), session.get_one(Vm, vm_id)
        row = session.get_one(EvacuationVm, (evacuation_id, vm_id))
        asked = look(context, session, evacuation).question
        # What failed before the consent, did so while it ran.
        avoids = asked.avoids if row.consent_at is not None else {}
        wanted = to_place(context, session, [vm], Question((), asked.closed, avoids), to_be_stopped=True)
        name = vm.name
    # The first answer will do, and is there at once: beat is not kept.
    plan = plan_moves(context, wanted, time_s=0.0)
    for move in plan.moves:
        return move.target
    nowhere = Problem("no_place", f"there is no place for {name} now", f"haulier evacuation show {evacuation_id}")
    return next((each.problem for each in plan.blocked), nowhere)


def follow_consents(context: Context, *, failed_too: bool = False, only: int | None = None) -> None:
    """Stop those that may be stopped, and start again those that were; of one evacuation `only`, or of all. With
    `failed_too` a start that failed is tried again. Safe to call at any time, by many.
    """
    query = select(EvacuationVm.evacuation_id, EvacuationVm.vm_id).where(STOP_IS_OPEN)
    if only is not None:
        query = query.where(EvacuationVm.evacuation_id == only)
    with context.database.read() as session:
        # Those that are off first: they take room that others would be stopped for.
        found = [
            (row[0], row[1]) for row in session.execute(query.order_by(EvacuationVm.stopped_at.is_(None), *_ORDER))
        ]
    for evacuation_id, vm_id in found:
        try:
            _follow(context, evacuation_id, vm_id, slow_beat=failed_too)
        except (Refused, ValueError, LookupError):
            # A row that was spoilt: it must hold no other VM, and not whatever else beat looks after.
            log.exception("consent.broken", evacuation=evacuation_id, vm=vm_id)


def _follow(context: Context, evacuation_id: int, vm_id: int, *, slow_beat: bool) -> None:
    place = _place_now(context, evacuation_id, vm_id)
    with context.unit() as unit:
        case = Case(unit, *_lock(unit, evacuation_id, vm_id), place)
        if case.is_open:
            ACTS[decide_consent(finding_of(case, slow_beat=slow_beat))](case)


def leave_off(context: Context, name: str) -> bool:
    """Have a VM that was stopped for its move, and is off, started no more; its move goes on. False if there is none
    that would be started, and nothing was changed then. Raises Refused for an unknown one, and for one that is just
    being stopped or started.
    """
    with context.database.read() as session:
        vm_id = find_vm(session, name).id
        query = select(EvacuationVm.evacuation_id).where(
            EvacuationVm.vm_id == vm_id, EvacuationVm.stopped_at.is_not(None)
        )
        found = session.scalars(query.order_by(EvacuationVm.evacuation_id)).all()
    left = [evacuation_id for evacuation_id in found if _leave_off(context, evacuation_id, vm_id)]
    return bool(left)


def _leave_off(context: Context, evacuation_id: int, vm_id: int) -> bool:
    with context.unit() as unit:
        _, vm, row = _lock(unit, evacuation_id, vm_id)
        if row.stopped_at is None or vm.state is not VmState.STOPPED:
            return False
        require_no_operation(unit, vm)
        row.stopped_at, row.problem = None, None
        unit.note("evacuation.left_off", vm=vm.name, node=vm.node.name, evacuation=evacuation_id)
        unit.send(go_on_message(evacuation_id))
        return True


def _place_now(context: Context, evacuation_id: int, vm_id: int) -> str | Problem | None:
    """A place for one that is to be stopped; None where its node lets nobody go now, or it is not to be stopped."""
    with context.database.read() as session:
        row = session.get_one(EvacuationVm, (evacuation_id, vm_id))
        if row.consent_at is None or row.evacuation.state not in MOVES or row.vm.node_id != row.evacuation.node_id:
            return None
        room = room_left(context, session)
        if room.is_full or row.vm.node.name in room.full_sources():
            return None
    return _find_place(context, evacuation_id, vm_id)
