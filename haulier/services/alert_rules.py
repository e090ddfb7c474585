"""What is done when an alert fires, by the alert's name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from haulier.clock import now
from haulier.errors import Refused, meant
from haulier.services.context import Context
from models import AlertAction, AlertRule


@dataclass(frozen=True, slots=True)
class Answer:
    """What an alert leads to: see AlertRule."""

    action: AlertAction
    label: str = "instance"
    restore: bool = False
    dry_run: bool = False


def add_rule(context: Context, alertname: str, answer: Answer) -> dict[str, Any]:
    """Have something done when this alert fires. Raises Refused where there is a rule for it, and for empty names."""
    if not alertname or not answer.label:
        raise Refused("bad_alert_rule", "an alert and a label have names", "--label instance")
    try:
        with context.unit() as unit:
            row = AlertRule(alertname=alertname, **asdict(answer), created_at=now())
            unit.session.add(row)
            unit.session.flush()
            unit.note("alert_rule.added", alert=alertname, action=answer.action, dry_run=answer.dry_run)
            return _document(row)
    except IntegrityError as error:
        hint = f"haulier alert remove {alertname}"
        raise Refused("alert_rule_exists", f"there is a rule for alert {alertname} already", hint) from error


def list_rules(context: Context) -> list[dict[str, Any]]:
    """All rules, by the alerts' names."""
    with context.database.read() as session:
        return [_document(row) for row in session.scalars(select(AlertRule).order_by(AlertRule.alertname))]


def remove_rule(context: Context, alertname: str) -> dict[str, Any]:
    """Have nothing done any more when this alert fires; what was received is done still. Raises Refused for an unknown
    one.
    """
    with context.unit() as unit:
        row = unit.session.scalar(select(AlertRule).where(AlertRule.alertname == alertname))
        if row is None:
            there = unit.session.scalars(select(AlertRule.alertname)).all()
            hint = meant(alertname, there) or "haulier alert rules"
            raise Refused("unknown_alert_rule", f"there is no rule for alert {alertname}", hint)
        document = _document(row)
        unit.session.execute(delete(AlertRule).where(AlertRule.id == row.id))
        unit.note("alert_rule.removed", alert=alertname)
        return document


def _document(row: AlertRule) -> dict[str, Any]:
    return {
        "alertname": row.alertname,
        "action": row.action,
        "label": row.label,
        "restore": row.restore,
        "dry_run": row.dry_run,
    }
