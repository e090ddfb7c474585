"""Alerts that Alertmanager delivers: each is written down once, and acted on by the control worker.

Alertmanager repeats itself, and is often there twice: as long as an alert is not over it is known by its fingerprint.
Its begin is no help: where two Prometheis say the same, Alertmanager may move it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.planner.alerts import node_of
from haulier.services.alert_actions import alerts_message, take_back
from haulier.services.alert_duty import exclude_others
from haulier.services.context import Context, Unit
from haulier.services.evacuations import plan_evacuation
from haulier.services.lookup import find_numbered
from models import Alert, AlertAction, AlertRule, AlertState, Node


@dataclass(frozen=True, slots=True)
class Fired:
    """An alert as it was delivered. One that is over (`is_resolved`) has the same fingerprint as before."""

    alertname: str
    fingerprint: str
    starts_at: datetime
    labels: Mapping[str, str]
    is_resolved: bool = False


@dataclass(frozen=True, slots=True)
class _Known:
    """What an alert is held against; `rows` are those that are not over, by their fingerprints."""

    rules: Mapping[str, AlertRule]
    nodes: Mapping[str, Node]
    rows: dict[str, Alert]


def receive(context: Context, fired: Sequence[Fired]) -> list[dict[str, Any]]:
    """Write these down, all or none, and have them acted on; says of each what becomes of it. May be called again."""
    with context.unit() as unit:
        exclude_others(unit)
        known = _load(unit.session, fired)
        return [_receive(unit, each, known) for each in fired]


def _load(session: Session, fired: Sequence[Fired]) -> _Known:
    same = (Alert.fingerprint.in_({each.fingerprint for each in fired}), Alert.state != AlertState.RESOLVED)
    rows = {row.fingerprint: row for row in session.scalars(select(Alert).where(*same))}
    return _Known(_rules(session), _nodes(session), rows)


def _rules(session: Session) -> dict[str, AlertRule]:
    return {rule.alertname: rule for rule in session.scalars(select(AlertRule))}


def _nodes(session: Session) -> dict[str, Node]:
    return {node.name: node for node in session.scalars(select(Node))}


def _receive(unit: Unit, fired: Fired, known: _Known) -> dict[str, Any]:
    rule, row = known.rules.get(fired.alertname), known.rows.get(fired.fingerprint)
    if row is not None:
        row.received += 1
        if fired.is_resolved:
            _resolve(unit, row)
            del known.rows[fired.fingerprint]
        elif rule is not None and _is_open_still(row, rule):
            _decide(unit, row, fired, rule, known.nodes)
    elif fired.is_resolved:
        row = _that_was_over(unit.session, fired)
    elif rule is not None:
        row = _new(fired)
        _decide(unit, row, fired, rule, known.nodes)
        known.rows[fired.fingerprint] = row
    return _outcome(fired, row)


def _is_open_still(row: Alert, rule: AlertRule) -> bool:
    """Since then the node may have been added, the rule mended, or made one that is carried out."""
    return row.state is AlertState.REFUSED or (row.state is AlertState.DRY_RUN and not rule.dry_run)


def _that_was_over(session: Session, fired: Fired) -> Alert | None:
    row = session.scalar(select(Alert).where(Alert.fingerprint == fired.fingerprint).order_by(Alert.id.desc()).limit(1))
    if row is not None:
        row.received += 1
    return row


def _new(fired: Fired) -> Alert:
    return Alert(
        fingerprint=fired.fingerprint,
        starts_at=fired.starts_at,
        alertname=fired.alertname,
        received=1,
        created_at=now(),
    )


def _decide(unit: Unit, row: Alert, fired: Fired, rule: AlertRule, nodes: Mapping[str, Node]) -> None:
    before = row.problem and row.problem["code"]
    node, problem = _find(fired, rule, nodes)
    row.action, row.restore, row.node = rule.action, rule.restore, node
    row.problem = problem.as_dict() if problem else None
    row.state = AlertState.REFUSED if problem else AlertState.DRY_RUN if rule.dry_run else AlertState.WAITING
    unit.session.add(row)
    unit.session.flush()
    if problem is None or problem.code != before:
        kind = "received" if row.state is AlertState.WAITING else row.state
        unit.note(
            f"alert.{kind}",
            node=row.node_name,
            alert=row.id,
            alertname=row.alertname,
            action=row.action,
            problem=row.problem,
        )
    # One for all of a delivery.
    if row.state is AlertState.WAITING and (message := alerts_message(held_too=False)) not in unit.messages:
        unit.send(message)


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
    row.state, row.resolved_at = AlertState.RESOLVED, now()
    unit.note("alert.resolved", node=row.node_name, alert=row.id, alertname=row.alertname)
    unit.session.flush()
    if row.restore:
        take_back(unit, row)


def forget(context: Context, alert_id: int) -> dict[str, Any]:
    """Do as if an alert's end had come: what it has done is taken back if its rule said so. One that fires still is a
    new one when it is delivered again. Raises Refused for an unknown one.
    """
    with context.unit() as unit:
        exclude_others(unit)
        row = find_numbered(unit.session, Alert, alert_id, kind="alert")
        if row.state is not AlertState.RESOLVED:
            _resolve(unit, row)
        return _document(row)


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
                plans[name] = _plan(context, name)
            each.update(plans[name])
    return found


def _plan(context: Context, name: str) -> dict[str, Any]:
    try:
        plan = plan_evacuation(context, name)
    except Refused as error:
        return {"outcome": AlertState.REFUSED, "message": error.problem.message}
    # It would be tried again for as long as the alert fires.
    return {"plan": plan, "message": next((f"would wait: {each['message']}" for each in plan["refusals"]), None)}


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
