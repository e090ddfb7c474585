"""The rules of labels, as people set and see them: which may begin, and how many in what time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from haulier.definition.values import label_name
from haulier.errors import Refused
from haulier.planner.labels import LabelRule, Rate
from haulier.services.context import Context, Unit
from haulier.services.room import ADMISSION, rule_of
from haulier.services.waiting import make_room
from models import WAITS, Migration, QueueLabel

# What was begun in this time is looked at each time that somebody may begin.
LONGEST_PERIOD_S = 86_400
MOST_BEGUN = 100_000


def pause_labels(context: Context, labels: Sequence[str], *, paused: bool) -> list[dict[str, Any]]:
    """Begin none with these labels any more, or let them go on; those at work go on. Safe to call twice.

    Returns their rules; raises Refused for what is no label, and nothing is changed then.
    """
    with context.unit() as unit:
        context.database.exclude_others(unit.session, ADMISSION)
        for label in map(label_name, labels):
            row = _row(unit, label)
            row.paused = paused
            _written(unit, row)
        make_room(unit)
    with context.database.read() as session:
        return list_labels(session, labels)


def change_rates(unit: Unit, rates: Mapping[str, Rate | None]) -> None:
    """Write how many of a label may be begun in a time; None is no limit. The caller excludes who decides about room.

    Raises Refused for what is no label or no rate.
    """
    for label, rate in rates.items():
        label_name(label)
        if rate is not None and not (1 <= rate.allowed <= MOST_BEGUN and 1 <= rate.period_s <= LONGEST_PERIOD_S):
            words = f"{rate.allowed} in {rate.period_s} s is no rate"
            hint = f"1 to {MOST_BEGUN} in 1s to 1d, for example 6/h; `haulier queue pause {label}` begins none."
            raise Refused("bad_rate", words, hint)
        row = _row(unit, label)
        row.allowed, row.period_s = (rate.allowed, rate.period_s) if rate else (None, None)
        _written(unit, row)


def _row(unit: Unit, label: str) -> QueueLabel:
    row = unit.session.get(QueueLabel, label)
    if row is None:
        row = QueueLabel(label=label, paused=False)
        unit.session.add(row)
    return row


def _written(unit: Unit, row: QueueLabel) -> None:
    unit.note("label.changed", label=row.label, paused=row.paused, allowed=row.allowed, period_s=row.period_s)
    if row.paused or row.allowed is not None:
        return
    # It says nothing any more.
    if row in unit.session.new:
        unit.session.expunge(row)
    else:
        unit.session.delete(row)


def list_labels(session: Session, labels: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """All labels that have a rule or that somebody waits with, or these, and how many wait with each."""
    query = select(Migration.label, func.count()).where(WAITS, Migration.label.is_not(None)).group_by(Migration.label)
    wait = {str(label): number for label, number in session.execute(query)}
    rules = {row.label: rule_of(row) for row in session.scalars(select(QueueLabel))}
    named = {*wait, *rules} if labels is None else set(labels)
    return [_document(label, rules.get(label, LabelRule()), wait.get(label, 0)) for label in sorted(named)]


def _document(label: str, rule: LabelRule, wait: int) -> dict[str, Any]:
    rate = {"allowed": rule.rate.allowed, "period_s": rule.rate.period_s} if rule.rate else None
    return {"label": label, "paused": rule.paused, "rate": rate, "waiting": wait}
