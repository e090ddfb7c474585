"""What is done with the node of an alert, and taken back when the alert is over. Safe to call again at any time."""

from __future__ import annotations

import structlog
from sqlalchemy import select

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.services import evacuations
from haulier.services.alert_duty import (
    HOLDS,
    exclude_others,
    heir_of_evacuation,
    heir_of_node,
    is_over,
    note_done,
    take_up,
)
from haulier.services.causes import ALERT, cause_of
from haulier.services.context import CONTROL_QUEUE, Context, Message, Unit
from haulier.services.evacuation_rows import open_evacuation
from haulier.services.evacuation_wishes import Wishes
from haulier.services.nodes import set_maintenance
from models import Alert, AlertAction, AlertState, Evacuation, Node, NodeState

log = structlog.get_logger()


def alerts_message(*, held_too: bool) -> Message:
    """Have the control worker act on all alerts that wait, and if wanted on those that were refused, and on those whose
    node is open though they have closed it.
    """
    return Message("haulier.alerts", CONTROL_QUEUE, int(held_too))


def ask_for_alerts(context: Context, *, held_too: bool) -> None:
    """Have alerts looked at, if there is one to act on."""
    if _waiting(context, held_too=held_too) or (held_too and _opened(context)):
        with context.unit() as unit:
            unit.send(alerts_message(held_too=held_too))


def act_on_all(context: Context, *, held_too: bool) -> None:
    """Do what alerts ask for that wait for it, one after the other; with `held_too` also what no person has undone."""
    acts = [(act, alert_id) for alert_id in _waiting(context, held_too=held_too)]
    acts += [(_close_again, alert_id) for alert_id in (_opened(context) if held_too else ())]
    for do, alert_id in acts:
        try:
            do(context, alert_id)
        except (Refused, ValueError, LookupError):
            # A row that was spoilt: it must hold no other alert.
            log.exception("alert.broken", alert=alert_id)


def _waiting(context: Context, *, held_too: bool) -> list[int]:
    with context.database.read() as session:
        rows = session.scalars(select(Alert).where(Alert.state == AlertState.WAITING).order_by(Alert.id))
        return [row.id for row in rows if held_too or row.problem is None]


def _opened(context: Context) -> list[int]:
    """Those that have closed their node, or found it closed, which is open now. Whoever opens it as a person overrules
    them: it was the end of an evacuation.
    """
    done = (Alert.state == AlertState.DONE, Alert.action == AlertAction.CORDON, Node.state == NodeState.ONLINE)
    query = select(Alert.id).join(Node, Node.id == Alert.node_id).where(*done).order_by(Alert.id)
    with context.database.read() as session:
        return list(session.scalars(query))


def act(context: Context, alert_id: int) -> None:
    """Do what an alert asks for, if it waits for that. As long as it fires, beat asks again for what is refused now."""
    with context.database.read() as session:
        row = session.get(Alert, alert_id)
        if row is None or row.state is not AlertState.WAITING or row.node is None:
            return
        action, name = row.action, row.node.name
    try:
        if action is AlertAction.CORDON:
            _cordon(context, alert_id)
        else:
            evacuations.evacuate(context, name, Wishes(cause=cause_of(ALERT, alert_id), alert=alert_id))
    except Refused as error:
        _hold(context, alert_id, error.problem)


def _cordon(context: Context, alert_id: int) -> None:
    with context.unit() as unit:
        row = take_up(unit, alert_id)
        node = unit.session.get_one(Node, row.node_id, with_for_update=True, populate_existing=True)
        is_open = node.state is NodeState.ONLINE
        if is_open:
            set_maintenance(unit, node, on=True, by=cause_of(ALERT, alert_id))
        note_done(unit, row, was_so=not is_open)


def _close_again(context: Context, alert_id: int) -> None:
    with context.unit() as unit:
        exclude_others(unit)
        row = unit.session.get_one(Alert, alert_id)
        if row.state is not AlertState.DONE:
            return
        node = unit.session.get_one(Node, row.node_id, with_for_update=True, populate_existing=True)
        if node.state is NodeState.ONLINE:
            set_maintenance(unit, node, on=True, by=cause_of(ALERT, alert_id))


def _hold(context: Context, alert_id: int, problem: Problem) -> None:
    with context.unit() as unit:
        exclude_others(unit)
        row = unit.session.get_one(Alert, alert_id)
        if row.state is not AlertState.WAITING:
            return
        if row.problem is None or row.problem["code"] != problem.code:
            unit.note(
                "alert.held", node=row.node_name, alert=row.id, alertname=row.alertname, problem=problem.as_dict()
            )
        row.problem = problem.as_dict()


def take_back(unit: Unit, row: Alert) -> None:
    """Undo what an alert that is over has done to its node. What a person or a window wishes stays; while another alert
    wants the same of that node, it is that one's from now on. The caller excludes others.
    """
    if row.node_id is None:
        return
    if row.action is AlertAction.EVACUATE:
        _bring_back(unit, row)
    else:
        _open(unit, row, row.node_id)


def _bring_back(unit: Unit, row: Alert) -> None:
    """As at the end of a window: whoever looks after those does it."""
    # By the cause: an alert that is over before its act was told of has begun none.
    its = (Evacuation.node_id == row.node_id, Evacuation.cause == cause_of(ALERT, row.id), Evacuation.state.in_(HOLDS))
    evacuation = unit.session.scalar(select(Evacuation).where(*its).with_for_update(of=Evacuation))
    if evacuation is None:
        return
    heir = heir_of_evacuation(unit.session, evacuation)
    if heir is not None:
        evacuation.cause = cause_of(ALERT, heir.id)
    elif evacuation.node_was is NodeState.ONLINE:
        _fill(unit, evacuation)


def _fill(unit: Unit, evacuation: Evacuation) -> None:
    evacuation.restore_at = now()
    unit.send(Message("haulier.windows", CONTROL_QUEUE, evacuation.id))


def _open(unit: Unit, row: Alert, node_id: int) -> None:
    session = unit.session
    there = open_evacuation(session, session.get_one(Node, node_id))
    # The evacuation before its node, as everywhere.
    evacuation = there and session.get_one(Evacuation, there.id, with_for_update=True, populate_existing=True)
    node = session.get_one(Node, node_id, with_for_update=True, populate_existing=True)
    if node.closed_by != cause_of(ALERT, row.id):
        return
    heir = heir_of_node(session, node)
    node.closed_by = cause_of(ALERT, heir.id) if heir is not None else None
    if heir is not None:
        return
    if node.state is NodeState.MAINTENANCE:
        set_maintenance(unit, node, on=False)
    elif evacuation is not None and evacuation.node_was is NodeState.MAINTENANCE:
        # Whoever cancels it opens the node.
        evacuation.node_was = NodeState.ONLINE
        if evacuation.state in HOLDS and is_over(session, evacuation):
            # The alert that has emptied the node could not fill it, because this one kept it closed.
            _fill(unit, evacuation)
