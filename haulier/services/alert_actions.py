"""What is done with the node of an alert, and taken back when the alert is over. Safe to call again at any time."""

from __future__ import annotations

from sqlalchemy import select

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.services import evacuations
from haulier.services.context import CONTROL_QUEUE, Context, Message, Unit
from haulier.services.nodes import set_maintenance
from models import Alert, AlertAction, AlertState, Evacuation, Node, NodeState
from models.transitions import OPEN_EVACUATION


def cause_of(alert_id: int) -> str:
    """What an evacuation says that an alert has begun."""
    return f"alert {alert_id}"


def act(context: Context, alert_id: int) -> None:
    """Do what an alert asks for, if it waits for that. As long as it fires, beat asks again for what is refused now."""
    with context.database.read() as session:
        row = session.get(Alert, alert_id)
        if row is None or row.state is not AlertState.WAITING or row.node is None:
            return
        action, name = row.action, row.node.name
    if action is AlertAction.CORDON:
        _cordon(context, alert_id)
        return
    try:
        document = evacuations.evacuate(context, name, evacuations.Wishes(cause=cause_of(alert_id)))
    except Refused as error:
        _hold(context, alert_id, error.problem)
    else:
        _done(context, alert_id, evacuation_id=document["id"])


def _cordon(context: Context, alert_id: int) -> None:
    """All in one transaction: whose act it was decides whether it is taken back."""
    with context.unit() as unit:
        row = _lock(unit, alert_id)
        if row.state is not AlertState.WAITING or row.node_id is None:
            return
        node = unit.session.get_one(Node, row.node_id, with_for_update=True, populate_existing=True)
        if node.state is NodeState.ONLINE:
            set_maintenance(unit, node, on=True)
            row.has_acted = True
        _note_done(unit, row)


def _lock(unit: Unit, alert_id: int) -> Alert:
    return unit.session.get_one(Alert, alert_id, with_for_update=True, populate_existing=True)


def _hold(context: Context, alert_id: int, problem: Problem) -> None:
    with context.unit() as unit:
        row = _lock(unit, alert_id)
        if row.state is not AlertState.WAITING:
            return
        if row.problem is None or row.problem["code"] != problem.code:
            unit.note(
                "alert.held", node=row.node_name, alert=row.id, alertname=row.alertname, problem=problem.as_dict()
            )
        row.problem = problem.as_dict()


def _done(context: Context, alert_id: int, *, evacuation_id: int) -> None:
    with context.unit() as unit:
        row = _lock(unit, alert_id)
        evacuation = unit.session.get_one(Evacuation, evacuation_id)
        row.evacuation_id, row.has_acted = evacuation_id, evacuation.cause == cause_of(alert_id)
        if row.state is AlertState.WAITING:
            _note_done(unit, row)
        elif row.state is AlertState.RESOLVED and row.restore:
            # It was over while its node's VMs were placed.
            unit.session.flush()
            take_back(unit, row)


def _note_done(unit: Unit, row: Alert) -> None:
    row.state, row.problem = AlertState.DONE, None
    unit.note(
        "alert.done",
        node=row.node_name,
        alert=row.id,
        alertname=row.alertname,
        action=row.action,
        evacuation=row.evacuation_id,
        was_so=not row.has_acted,
    )


def take_back(unit: Unit, row: Alert) -> None:
    """Undo what an alert has done to a node. What a person has done stays; while another alert wants the same of that
    node, it is that one's from now on.
    """
    if not row.has_acted:
        return
    same = (
        Alert.node_id == row.node_id,
        Alert.evacuation_id.is_not_distinct_from(row.evacuation_id),
        Alert.action == row.action,
        Alert.state == AlertState.DONE,
    )
    heir = unit.session.scalar(select(Alert).where(*same).order_by(Alert.restore.desc(), Alert.id).limit(1))
    if heir is not None:
        heir.has_acted = True
    elif row.evacuation_id is not None:
        _bring_back(unit, row.evacuation_id)
    elif row.node_id is not None:
        node = unit.session.get_one(Node, row.node_id, with_for_update=True, populate_existing=True)
        if node.state is NodeState.MAINTENANCE:
            set_maintenance(unit, node, on=False)


def _bring_back(unit: Unit, evacuation_id: int) -> None:
    """As at the end of a window: whoever looks after those does it."""
    evacuation = unit.session.get_one(Evacuation, evacuation_id, with_for_update=True, populate_existing=True)
    if evacuation.state in OPEN_EVACUATION and evacuation.node_was is NodeState.ONLINE:
        evacuation.restore_at = now()
        unit.send(Message("haulier.windows", CONTROL_QUEUE, evacuation_id))


def ask_for_alerts(context: Context, *, held_too: bool) -> None:
    """Have those acted on that wait, and if wanted those that were refused."""
    with context.database.read() as session:
        waiting = session.scalars(select(Alert).where(Alert.state == AlertState.WAITING).order_by(Alert.id)).all()
        ids = [row.id for row in waiting if held_too or row.problem is None]
    if ids:
        with context.unit() as unit:
            unit.send(*(Message("haulier.alert", CONTROL_QUEUE, alert_id) for alert_id in ids))
