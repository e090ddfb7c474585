"""Alerts that Alertmanager delivers: each is written down once, and acted on by the control worker.

Alertmanager repeats itself, and is often there twice: the same alert is known by its fingerprint and its begin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Problem
from haulier.planner.alerts import node_of
from haulier.services.alert_actions import take_back
from haulier.services.context import CONTROL_QUEUE, Context, Message, Unit
from haulier.services.evacuations import plan_evacuation
from models import Alert, AlertAction, AlertRule, AlertState, Node

# What anybody may make up ends somewhere.
_AGAIN = 5


@dataclass(frozen=True, slots=True)
class Fired:
    """An alert as it was delivered. One that is over (`is_resolved`) has the same fingerprint and begin as before."""

    alertname: str
    fingerprint: str
    starts_at: datetime
    labels: Mapping[str, str]
    is_resolved: bool = False


def alert_message(alert_id: int) -> Message:
    """Have the control worker act on an alert."""
    return Message("haulier.alert", CONTROL_QUEUE, alert_id)


def receive(context: Context, fired: Sequence[Fired]) -> list[dict[str, Any]]:
    """Write these down, all or none, and have them acted on; says of each what becomes of it. May be called again."""
    for _ in range(_AGAIN):
        try:
            with context.unit() as unit:
                rules, nodes = _rules(unit.session), _nodes(unit.session)
                return [_receive(unit, each, rules.get(each.alertname), nodes) for each in fired]
        except IntegrityError as error:
            # The other one of a pair delivers the same in this moment.
            if not any(word in str(error.orig) for word in ("uq_alert_fingerprint", "alert.fingerprint")):
                raise
            raced = error
    raise raced


def _rules(session: Session) -> dict[str, AlertRule]:
    return {rule.alertname: rule for rule in session.scalars(select(AlertRule))}


def _nodes(session: Session) -> dict[str, Node]:
    return {node.name: node for node in session.scalars(select(Node))}


def _receive(unit: Unit, fired: Fired, rule: AlertRule | None, nodes: Mapping[str, Node]) -> dict[str, Any]:
    same = (Alert.fingerprint == fired.fingerprint, Alert.starts_at == fired.starts_at)
    row = unit.session.scalar(select(Alert).where(*same).with_for_update(of=Alert))
    if row is not None:
        row.received += 1
        if fired.is_resolved and row.state is not AlertState.RESOLVED:
            _resolve(unit, row)
    elif rule is not None and not fired.is_resolved:
        row = _write(unit, fired, rule, nodes)
    return _outcome(fired, row)


def _write(unit: Unit, fired: Fired, rule: AlertRule, nodes: Mapping[str, Node]) -> Alert:
    node, problem = _find(fired, rule, nodes)
    state = AlertState.REFUSED if problem else AlertState.DRY_RUN if rule.dry_run else AlertState.WAITING
    row = Alert(
        fingerprint=fired.fingerprint,
        starts_at=fired.starts_at,
        alertname=fired.alertname,
        action=rule.action,
        restore=rule.restore,
        node_id=node and node.id,
        state=state,
        problem=problem and problem.as_dict(),
        created_at=now(),
    )
    unit.session.add(row)
    unit.session.flush()
    kind = {AlertState.WAITING: "received"}.get(state, state)
    unit.note(
        f"alert.{kind}",
        node=row.node_name,
        alert=row.id,
        alertname=row.alertname,
        action=row.action,
        problem=row.problem,
    )
    if state is AlertState.WAITING:
        unit.send(alert_message(row.id))
    return row


def _find(fired: Fired, rule: AlertRule, nodes: Mapping[str, Node]) -> tuple[Node | None, Problem | None]:
    """The node that an alert is about, or why it is about none."""
    value = fired.labels.get(rule.label)
    if value is None:
        return None, Problem("no_label", f"alert {fired.alertname} has no label {rule.label}", "haulier alert rules")
    name = node_of(value, {node.name: node.address for node in nodes.values()})
    if name is None:
        return None, Problem("unknown_node", f"{rule.label} {value!r} names no node", "haulier node list")
    return nodes[name], None


def _resolve(unit: Unit, row: Alert) -> None:
    was_done = row.state is AlertState.DONE
    row.state, row.resolved_at = AlertState.RESOLVED, now()
    unit.note("alert.resolved", node=row.node_name, alert=row.id, alertname=row.alertname)
    unit.session.flush()
    if was_done and row.restore:
        take_back(unit, row)


def _outcome(fired: Fired, row: Alert | None) -> dict[str, Any]:
    problem = row.problem if row is not None else None
    return {
        "alertname": fired.alertname,
        "fingerprint": fired.fingerprint,
        "alert": row and row.id,
        "node": row and row.node_name,
        "action": row and row.action,
        "outcome": row.state if row is not None else "ignored",
        "message": problem["message"] if problem else None,
        "plan": None,
    }


def rehearse(context: Context, fired: Sequence[Fired]) -> list[dict[str, Any]]:
    """What would be done for these if they were delivered now for the first time. Touches nothing."""
    with context.database.read() as session:
        rules, nodes = _rules(session), _nodes(session)
        found = [_rehearsed(each, rules.get(each.alertname), nodes) for each in fired]
    plans = dict[str, dict[str, Any]]()
    for each in found:
        if each["action"] is AlertAction.EVACUATE and (name := each["node"]):
            if name not in plans:
                plans[name] = plan_evacuation(context, name)
            each["plan"] = plans[name]
    return found


def _rehearsed(fired: Fired, rule: AlertRule | None, nodes: Mapping[str, Node]) -> dict[str, Any]:
    if rule is None or fired.is_resolved:
        return _outcome(fired, None)
    node, problem = _find(fired, rule, nodes)
    return {
        **_outcome(fired, None),
        "node": node and node.name,
        "action": rule.action,
        "outcome": AlertState.REFUSED if problem else AlertState.DRY_RUN,
        "message": problem and problem.message,
    }


def list_alerts(context: Context, *, limit: int = 100) -> list[dict[str, Any]]:
    """The newest alerts for which there was a rule."""
    with context.database.read() as session:
        rows = session.scalars(select(Alert).order_by(Alert.id.desc()).limit(limit))
        return [_document(row) for row in rows]


def _document(row: Alert) -> dict[str, Any]:
    return {
        "id": row.id,
        "alertname": row.alertname,
        "fingerprint": row.fingerprint,
        "node": row.node_name,
        "action": row.action,
        "restore": row.restore,
        "state": row.state,
        "evacuation": row.evacuation_id,
        "problem": row.problem,
        "received": row.received,
        "starts_at": row.starts_at.isoformat(),
        "created_at": row.created_at.isoformat(),
        "resolved_at": row.resolved_at and row.resolved_at.isoformat(),
    }
