"""Evacuations as people ask for them: planned, begun, paused, resumed, cancelled, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Refused
from haulier.services import batches
from haulier.services.admission import AT_ONCE_S, admit
from haulier.services.alert_duty import exclude_others, note_done, overrule, take_up
from haulier.services.consent import follow_consents
from haulier.services.context import Context, Unit
from haulier.services.evacuation_refusals import ask, leaving, refusals, require_hold
from haulier.services.evacuation_rows import (
    find_evacuation,
    left_behind,
    lost_node,
    missing,
    open_evacuation,
    unfinished,
)
from haulier.services.evacuation_steps import go_on, move_evacuation
from haulier.services.evacuation_view import plan_document, show_evacuation
from haulier.services.evacuation_wishes import USUAL_WISHES, Wishes, end_beside_hold, wish_too
from haulier.services.group_room import full_groups, hold_groups
from haulier.services.lookup import find_node
from haulier.services.placed_moves import newest_promise
from haulier.services.roll_turns import begin_turn, hold_turn
from haulier.services.waiting import go_on_message
from models import Batch, BatchState, Evacuation, EvacuationState, Node, NodeState, Vm
from models.transitions import OPEN_EVACUATION

_E = EvacuationState
# Its batch begins nothing meanwhile.
_AT_WORK = (_E.PLANNED, _E.RUNNING)


def plan_evacuation(context: Context, name: str, wishes: Wishes = USUAL_WISHES) -> dict[str, Any]:
    """What an evacuation of a node would do, as contract.md shows it. Touches nothing. Raises Refused for an unknown
    node, for one that was declared lost, and for a time that a node cannot stay empty.
    """
    require_hold(wishes.hold_s)
    with context.database.read() as session:
        node = _require_usable(find_node(session, name))
        full = () if open_evacuation(session, node) else full_groups(session, node)
        wanted = leaving(context, session, node)
        left = [vm.name for vm in left_behind(session, node)]
    asked = ask(context, wanted)
    found = (*full, *refusals(asked, spare=wishes.spare, deadline=wishes.deadline))
    document = plan_document(node, asked.plan, but=asked.guests)
    return {**document, "left": left, "refusals": [problem.as_dict() for problem in found]}


def _require_usable(node: Node) -> Node:
    if problem := lost_node(node):
        raise Refused.because((problem,))
    return node


def evacuate(context: Context, name: str, wishes: Wishes = USUAL_WISHES) -> dict[str, Any]:
    """Begin to empty a node, or go on with the evacuation that it has. Raises Refused with all reasons; nothing was
    changed then.
    """
    require_hold(wishes.hold_s)
    with context.database.read() as session:
        node = _require_usable(find_node(session, name))
        is_new = open_evacuation(session, node) is None
        full = full_groups(session, node) if is_new else ()
        wanted = leaving(context, session, node) if is_new else None
    if wanted is not None:
        found = refusals(ask(context, wanted), spare=wishes.spare, deadline=wishes.deadline)
        if problems := (*full, *found):
            raise Refused.because(problems)
    evacuation_id, again = _file(context, name, wishes)
    go_on(context, evacuation_id)
    admit(context, at_most_s=AT_ONCE_S)
    return {**show_evacuation(context, evacuation_id), "again": again}


def _file(context: Context, name: str, wishes: Wishes) -> tuple[int, bool]:
    """The node's evacuation, and whether it was there already. From then on the node takes nothing."""
    try:
        with context.unit() as unit:
            # First of all, as always.
            alert = take_up(unit, wishes.alert) if wishes.alert is not None else None
            # Two that begin at one moment in a group would both find room there: from here on one waits for the other.
            hold_groups(unit.session, name)
            node = find_node(unit.session, name)
            turn = None if wishes.roll_id is None else hold_turn(unit.session, wishes.roll_id, node.id)
            there = open_evacuation(unit.session, node)
            if there is not None:
                evacuation = _lock(unit, there.id)
                _ask_again(unit, evacuation, wishes)
            else:
                evacuation = _begin(unit, name, wishes)
            if alert is not None:
                note_done(unit, alert, was_so=evacuation.cause != wishes.cause, evacuation_id=evacuation.id)
            if turn is not None:
                begin_turn(unit, turn, evacuation)
            return evacuation.id, there is not None
    except IntegrityError as error:
        if not any(word in str(error.orig) for word in ("uq_evacuation_one_open", "evacuation.node_id")):
            raise
        # Somebody else was first.
        return _file(context, name, wishes)


def _begin(unit: Unit, name: str, wishes: Wishes) -> Evacuation:
    """A new one. It is asked again what may have changed while the VMs were placed."""
    node = _require_usable(find_node(unit.session, name, lock=True))
    if problems := full_groups(unit.session, node):
        raise Refused.because(problems)
    # A node that took nothing before is not filled by itself.
    is_filled = node.state is NodeState.ONLINE
    evacuation = Evacuation(
        node_id=node.id,
        node_was=node.state,
        cause=wishes.cause,
        deadline=wishes.deadline,
        restore_at=wishes.restore_at if is_filled else None,
        hold_s=wishes.hold_s if is_filled else None,
        tried_after=newest_promise(unit.session)[0],
        created_at=now(),
    )
    unit.session.add(evacuation)
    node.state = NodeState.DRAINING
    unit.session.flush()
    unit.note("evacuation.planned", node=name, evacuation=evacuation.id, cause=wishes.cause)
    unit.send(go_on_message(evacuation.id))
    return evacuation


def _lock(unit: Unit, evacuation_id: int) -> Evacuation:
    """The evacuation, and after it its node: nobody else changes either before the transaction ends."""
    evacuation = unit.session.get_one(Evacuation, evacuation_id, with_for_update=True, populate_existing=True)
    unit.session.get_one(Node, evacuation.node_id, with_for_update=True, populate_existing=True)
    return evacuation


def _ask_again(unit: Unit, evacuation: Evacuation, wishes: Wishes) -> None:
    """One that was over for now looks at its node again: somebody may have started a VM there. A window that begins
    while another one's evacuation is there ends with the later of both.
    """
    if evacuation.state not in OPEN_EVACUATION:
        words = f"evacuation {evacuation.id} of {evacuation.node.name} has ended in this moment"
        raise Refused("evacuation_over", words, f"haulier evacuate {evacuation.node.name}")
    if evacuation.state is _E.RESTORING:
        hint = f"Wait for it, or: haulier evacuation cancel {evacuation.id}"
        raise Refused("evacuation_restoring", f"node {evacuation.node.name} is being filled again", hint)
    left = unit.session.scalar(select(Vm.id).where(Vm.node_id == evacuation.node_id).limit(1))
    if evacuation.state is _E.DRAINED and left is not None:
        _set_node(evacuation, NodeState.DRAINING)
        move_evacuation(unit, evacuation, _E.RUNNING)
        if evacuation.hold_s is not None:
            # That begins anew when it is drained again.
            evacuation.restore_at = end_beside_hold(unit.session, evacuation)
    wish_too(evacuation, wishes)
    unit.send(go_on_message(evacuation.id))


def _set_node(evacuation: Evacuation, to: NodeState) -> None:
    """Only where the node's state is an evacuation's: somebody may have declared it lost meanwhile."""
    if evacuation.node.state in (NodeState.DRAINING, NodeState.DRAINED):
        evacuation.node.state = to


def pause(context: Context, evacuation_id: int) -> dict[str, Any]:
    """Begin no more of its moves; those at work go on. Raises Refused for one that is over."""

    def change(unit: Unit, evacuation: Evacuation) -> None:
        move_evacuation(unit, evacuation, _E.PAUSED)
        _set_batches(unit, evacuation, BatchState.PAUSED)

    _change(context, evacuation_id, (*_AT_WORK, _E.BLOCKED, _E.PAUSED), change)
    follow_consents(context, only=evacuation_id)
    return show_evacuation(context, evacuation_id)


def resume(context: Context, evacuation_id: int) -> dict[str, Any]:
    """Let it go on; what has failed is tried again. Raises Refused for one that is over."""

    def change(unit: Unit, evacuation: Evacuation) -> None:
        evacuation.tried_after = newest_promise(unit.session)[0]
        if evacuation.state is not _E.PLANNED:
            move_evacuation(unit, evacuation, _E.RUNNING)
        _set_batches(unit, evacuation, BatchState.OPEN)

    document = _change(context, evacuation_id, (*_AT_WORK, _E.BLOCKED, _E.PAUSED), change)
    go_on(context, evacuation_id)
    admit(context, at_most_s=AT_ONCE_S)
    return {**document, **show_evacuation(context, evacuation_id)}


def _change(
    context: Context,
    evacuation_id: int,
    states: tuple[EvacuationState, ...],
    change: Callable[[Unit, Evacuation], None],
) -> dict[str, Any]:
    with context.unit() as unit:
        find_evacuation(unit.session, evacuation_id)
        evacuation = _lock(unit, evacuation_id)
        if evacuation.state not in states:
            words = f"evacuation {evacuation_id} is {evacuation.state}"
            raise Refused("evacuation_over", words, f"haulier evacuation show {evacuation_id}")
        change(unit, evacuation)
    return show_evacuation(context, evacuation_id)


def _set_batches(unit: Unit, evacuation: Evacuation, state: BatchState, *, outward_only: bool = False) -> None:
    for batch in unit.session.scalars(select(Batch).where(Batch.evacuation_id == evacuation.id)):
        if batch.state is not BatchState.CANCELLED and not (outward_only and batch.homeward):
            batch.state = state


def cancel(context: Context, evacuation_id: int, *, undo: bool, to_restore: bool = False) -> dict[str, Any]:
    """End what waits, on the way out or back; what is at work finishes, or with `undo` is undone where that can be.

    The node takes VMs again if it did before; what has left stays where it is, unless the end of a window asks for this
    and is `to_restore` all. Raises Refused for one that is over.
    """

    def change(unit: Unit, evacuation: Evacuation) -> None:
        if to_restore:
            _require_end(evacuation)
        _set_node(evacuation, evacuation.node_was)
        move_evacuation(unit, evacuation, _E.CANCELLED)
        evacuation.restore_at = evacuation.restore_at if to_restore else None
        # Whoever dies before the batches have been told leaves nothing that begins.
        _set_batches(unit, evacuation, BatchState.CANCELLED)

    _change(context, evacuation_id, (*_AT_WORK, _E.BLOCKED, _E.PAUSED, _E.DRAINED, _E.RESTORING), change)
    for batch_id in _batches(context, evacuation_id):
        _cancel_batch(context, batch_id, undo=undo)
    # What was stopped for its move runs again.
    follow_consents(context, only=evacuation_id)
    return show_evacuation(context, evacuation_id)


def _require_end(evacuation: Evacuation) -> None:
    """Raise Refused for one that somebody wants not to end by itself any more."""
    if evacuation.restore_at is None:
        raise Refused("evacuation_wanted", f"evacuation {evacuation.id} does not end by itself any more", "")


def _batches(context: Context, evacuation_id: int) -> list[int]:
    with context.database.read() as session:
        return list(session.scalars(select(Batch.id).where(Batch.evacuation_id == evacuation_id)))


def _cancel_batch(context: Context, batch_id: int, *, undo: bool) -> None:
    try:
        batches.cancel(context, batch_id, undo=undo)
    except Refused as error:
        if error.code != "batch_over":
            raise


def restore(context: Context, name: str, *, only: int | None = None) -> dict[str, Any]:
    """Bring back what evacuations have sent away from a node, as far as it fits there now. The node takes VMs again.

    Raises Refused where there is nothing to bring back, an evacuation is still at work, or the node's evacuation is not
    the `only` one that is meant.
    """
    with context.unit() as unit:
        if only is None:
            exclude_others(unit)
        node = find_node(unit.session, name)
        found = open_evacuation(unit.session, node) or _newest(unit.session, node)
        if found is None:
            raise Refused("never_evacuated", f"node {name} was never emptied", "haulier evacuation list")
        if only not in (None, found.id):
            raise Refused("evacuation_over", f"evacuation {only} is not that of {name} any more", "")
        evacuation = _lock(unit, found.id)
        _require_usable(evacuation.node)
        if evacuation.state in (*_AT_WORK, _E.PAUSED):
            words = f"evacuation {evacuation.id} of {name} is {evacuation.state}"
            raise Refused("evacuation_open", words, f"Wait for it, or: haulier evacuation cancel {evacuation.id}")
        again = evacuation.state is _E.RESTORING
        if not again:
            if only is None:
                overrule(unit, evacuation.node)
            else:
                _require_end(evacuation)
            _begin_restore(unit, evacuation)
        evacuation_id = evacuation.id
    go_on(context, evacuation_id)
    admit(context, at_most_s=AT_ONCE_S)
    return {**show_evacuation(context, evacuation_id), "again": again}


def _newest(session: Session, node: Node) -> Evacuation | None:
    return session.scalar(
        select(Evacuation).where(Evacuation.node_id == node.id).order_by(Evacuation.id.desc()).limit(1)
    )


def _begin_restore(unit: Unit, evacuation: Evacuation) -> None:
    node = evacuation.node
    away = missing(unit.session, node.id) or unfinished(unit.session, evacuation)
    if evacuation.state in (_E.CANCELLED, _E.RESTORED) and not away:
        raise Refused("nothing_to_restore", f"nothing that left {node.name} is to be brought back", "haulier vm list")
    node.state = NodeState.ONLINE
    evacuation.tried_after, evacuation.problem = newest_promise(unit.session)[0], None
    evacuation.restore_at = None
    # What waits to leave ends; what has begun to comes home afterwards.
    _set_batches(unit, evacuation, BatchState.CANCELLED, outward_only=True)
    for row in evacuation.vms:
        row.problem = None
    move_evacuation(unit, evacuation, _E.RESTORING)
    unit.send(go_on_message(evacuation.id))
