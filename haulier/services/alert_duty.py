"""Whose act it is that a node is empty or closed: an alert's, as long as no person and no window has wished the same.

An evacuation says so by its `cause`, a node that is closed by its `closed_by`. Whoever writes alerts excludes all
others that do, before it locks anything else.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Refused
from haulier.services.causes import ALERT, cause_of, number_of
from haulier.services.context import Context, Unit
from models import Alert, AlertAction, AlertState, Evacuation, EvacuationState, Node
from models.transitions import OPEN_EVACUATION

# Which alert a node belongs to next is decided by one at a time.
_ALERTS = 4
# The first of them is the heir: one that gives the node back at its end before one that does not.
_HEIRS = (Alert.restore.desc(), Alert.id)
# Its node is being emptied, or is empty.
HOLDS = tuple(state for state in OPEN_EVACUATION if state is not EvacuationState.RESTORING)
# It would open its node at its end: one that was given up for that may not have been filled.
_TO_END = (*HOLDS, EvacuationState.CANCELLED)


def exclude_others(unit: Unit) -> None:
    """Nobody else writes alerts before the end of this transaction. Before all other locks of it."""
    unit.context.database.exclude_others(unit.session, _ALERTS)


def take_up(unit: Unit, alert_id: int) -> Alert:
    """The alert that something is done for in this transaction. Raises Refused if that is done, or the alert over."""
    exclude_others(unit)
    row = unit.session.get_one(Alert, alert_id)
    if row.state is not AlertState.WAITING:
        raise Refused("alert_over", f"alert {alert_id} is {row.state}", "haulier alert list")
    return row


def note_done(unit: Unit, row: Alert, *, was_so: bool, evacuation_id: int | None = None) -> None:
    """In the transaction of the act: who dies has done it and said so, or neither. `was_so`: the node was so before."""
    row.state, row.problem, row.evacuation_id = AlertState.DONE, None, evacuation_id
    unit.note(
        "alert.done",
        node=row.node_name,
        alert=row.id,
        alertname=row.alertname,
        action=row.action,
        evacuation=evacuation_id,
        was_so=was_so,
    )


def heir_of_evacuation(session: Session, evacuation: Evacuation) -> Alert | None:
    """An alert that fires and wants the node of an evacuation empty."""
    wants = or_(
        Alert.state == AlertState.WAITING,
        (Alert.state == AlertState.DONE) & (Alert.evacuation_id == evacuation.id),
    )
    same = (Alert.node_id == evacuation.node_id, Alert.action == AlertAction.EVACUATE, wants)
    return session.scalar(select(Alert).where(*same).order_by(*_HEIRS).limit(1))


def is_over(session: Session, evacuation: Evacuation) -> bool:
    """Whether an evacuation is that of an alert which is over and was to be taken back, and no other one wants it."""
    ended = (Alert.node_id == evacuation.node_id, Alert.action == AlertAction.EVACUATE, Alert.restore.is_(True))
    own = (Alert.id == number_of(evacuation.cause, ALERT), Alert.state == AlertState.RESOLVED)
    is_its = session.scalar(select(Alert.id).where(*ended, *own)) is not None
    return is_its and heir_of_evacuation(session, evacuation) is None


def heir_of_node(session: Session, node: Node) -> Alert | None:
    """An alert that fires and wants a node closed."""
    fires = Alert.state.in_((AlertState.WAITING, AlertState.DONE))
    same = (Alert.node_id == node.id, Alert.action == AlertAction.CORDON, fires)
    return session.scalar(select(Alert).where(*same).order_by(*_HEIRS).limit(1))


def keep_for_alert(context: Context, evacuation_id: int) -> bool:
    """Whether an evacuation whose end has come is not to end: an alert fires and wants the node empty, and it is that
    one's from now on; or somebody else wants that since. While one fires that wants it closed it does not end yet.
    """
    with context.unit() as unit:
        exclude_others(unit)
        evacuation = unit.session.get_one(Evacuation, evacuation_id, with_for_update=True)
        if evacuation.restore_at is None or evacuation.restore_at > now():
            return True
        heir = heir_of_evacuation(unit.session, evacuation) if evacuation.state in HOLDS else None
        if heir is None:
            # To fill it would open it. Beat asks again.
            return closing_alert(unit.session, evacuation) is not None
        evacuation.cause, evacuation.restore_at = cause_of(ALERT, heir.id), None
        unit.note("evacuation.kept", node=evacuation.node.name, evacuation=evacuation.id, cause=evacuation.cause)
        return True


def closing_alert(session: Session, evacuation: Evacuation) -> Alert | None:
    """An alert that fires and wants the node closed of an evacuation whose end has come."""
    is_due = evacuation.restore_at is not None and evacuation.restore_at <= now()
    return heir_of_node(session, evacuation.node) if is_due and evacuation.state in _TO_END else None


def overrule(unit: Unit, node: Node) -> None:
    """A person has opened a node: no alert that is done keeps it as it was. The caller excludes others."""
    done = (Alert.node_id == node.id, Alert.state == AlertState.DONE)
    rows: Sequence[Alert] = unit.session.scalars(select(Alert).where(*done).order_by(Alert.id)).all()
    for row in rows:
        row.state = AlertState.OVERRULED
        unit.note("alert.overruled", node=node.name, alert=row.id, alertname=row.alertname)
