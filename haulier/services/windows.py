"""Maintenance windows: a node is emptied when its window begins, and filled again when it ends; from the rows.

A window of a group rolls through it: each node in turn.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.planner.windows import find_zone, next_start
from haulier.services import evacuations, rolls
from haulier.services.alert_duty import keep_for_alert
from haulier.services.causes import WINDOW, cause_of, number_of
from haulier.services.context import CONTROL_QUEUE, Context, Message
from haulier.services.evacuation_refusals import before_hold, require_hold
from haulier.services.evacuation_wishes import Wishes
from haulier.services.groups import find_group
from haulier.services.lookup import find_node, find_numbered
from haulier.settings import LONGEST_S
from models import Evacuation, EvacuationState, MaintenanceWindow, Roll

log = structlog.get_logger()
_E = EvacuationState


@dataclass(frozen=True, slots=True)
class Times:
    """When a node is to be empty: for `duration_s`, each time that `cron` means in `zone`, or once `at` a moment.
    It stays empty for `hold_s` at most.
    """

    duration_s: float
    cron: str | None = None
    at: datetime | None = None
    zone: str = "UTC"
    hold_s: float | None = None


def add_window(
    context: Context, node: str | None, times: Times, *, group: str | None = None, restore: bool = False
) -> dict[str, Any]:
    """Have a node emptied at these times, or each node of a group in turn, and with `restore` filled again at their
    ends.

    Raises Refused for what never comes, is over, or has no length, and unless it is a node or a group; nothing is
    written then.
    """
    next_at = _first_start(times)
    if (node is None) is (group is None):
        raise Refused("bad_window", "a window is of a node or of a group", "haulier window add NODE, or --group GROUP.")
    with context.unit() as unit:
        row = MaintenanceWindow(
            group=None if group is None else find_group(unit.session, group, lock=True),
            node=None if node is None else find_node(unit.session, node),
            cron=times.cron,
            zone=times.zone,
            duration_s=times.duration_s,
            restore=restore,
            hold_s=times.hold_s,
            next_at=next_at,
            created_at=now(),
        )
        unit.session.add(row)
        unit.session.flush()
        unit.note("window.added", node=node, window=row.id, group=group, next_at=next_at.isoformat())
        return _document(row)


def _first_start(times: Times) -> datetime:
    if not 0 < times.duration_s <= LONGEST_S:
        raise Refused("bad_window", f"a window of {times.duration_s:g} s is none", "--duration 2h")
    require_hold(times.hold_s)
    if (times.hold_s or 0) >= times.duration_s:
        words = f"a node that stays empty for {times.hold_s:g} s does not fit a window of {times.duration_s:g} s"
        raise Refused("bad_window", words, "A longer --duration, or a shorter --hold.")
    find_zone(times.zone)
    if times.cron is not None and times.at is None:
        return next_start(times.cron, times.zone, after=now())
    if times.at is None or times.cron is not None:
        hint = '--cron "0 2 * * 6", or --at MOMENT.'
        raise Refused("bad_window", "a window has a cron expression or a moment", hint)
    if times.at <= now():
        raise Refused("window_over", f"the window at {times.at.isoformat()} is in the past", "A moment to come.")
    return times.at


def list_windows(context: Context) -> list[dict[str, Any]]:
    """All windows, in the order in which they begin."""
    order = (MaintenanceWindow.next_at.is_(None), MaintenanceWindow.next_at, MaintenanceWindow.id)
    with context.database.read() as session:
        last = _last(session)
        rows = session.scalars(select(MaintenanceWindow).order_by(*order))
        return [{**_document(row), "last": last.get(row.id)} for row in rows]


def _last(session: Session) -> dict[int, str]:
    """The newest evacuation or roll that each window has begun, and how it stands."""
    newest = select(func.max(Roll.id)).where(Roll.window_id.is_not(None)).group_by(Roll.window_id)
    rolls_ = session.execute(select(Roll.window_id, Roll.id, Roll.state).where(Roll.id.in_(newest)))
    found = {row.window_id: f"roll {row.id}: {row.state}" for row in rolls_}
    begun = select(func.max(Evacuation.id)).where(Evacuation.cause.startswith(f"{WINDOW} ")).group_by(Evacuation.cause)
    of_nodes = session.execute(
        select(Evacuation.cause, Evacuation.id, Evacuation.state).where(Evacuation.id.in_(begun))
    )
    return found | {number_of(row.cause, WINDOW): f"evacuation {row.id}: {row.state}" for row in of_nodes}


def remove_window(context: Context, window_id: int) -> dict[str, Any]:
    """Take a window away. What it has begun goes on. Raises Refused for an unknown one."""
    with context.unit() as unit:
        row = find_numbered(unit.session, MaintenanceWindow, window_id, kind="window")
        document = _document(row)
        unit.session.execute(delete(MaintenanceWindow).where(MaintenanceWindow.id == window_id))
        unit.note("window.removed", node=document["node"], window=window_id, group=document["group"])
        return document


def _document(row: MaintenanceWindow) -> dict[str, Any]:
    node, group = _of(row)
    return {
        "id": row.id,
        "node": node,
        "group": group,
        "cron": row.cron,
        "zone": row.zone,
        "duration_s": row.duration_s,
        "restore": row.restore,
        "hold_s": row.hold_s,
        "next_at": row.next_at and row.next_at.isoformat(),
        "problem": row.problem,
    }


def ask_for_windows(context: Context) -> None:
    """Have windows looked at, if the time of one has come or is over."""
    moment = now()
    with context.database.read() as session:
        due = session.scalar(select(MaintenanceWindow.id).where(MaintenanceWindow.next_at <= moment).limit(1))
        number = due or next((row[0] for row in _over(session, moment)), None)
    if number is not None:
        with context.unit() as unit:
            unit.send(Message("haulier.windows", CONTROL_QUEUE, number))


@dataclass(frozen=True, slots=True)
class _Begun:
    """A window whose time has come, and when it is over."""

    window_id: int
    at: datetime
    end: datetime
    node: str | None
    group: str | None
    restore: bool
    hold_s: float | None


def _begun_of(row: MaintenanceWindow, at: datetime) -> _Begun:
    end = at + timedelta(seconds=row.duration_s)
    return _Begun(row.id, at, end, *_of(row), row.restore, row.hold_s)


def _of(row: MaintenanceWindow) -> tuple[str | None, str | None]:
    """The names of its node and of its group: it has one of them."""
    return (row.node.name if row.node else None, row.group.name if row.group else None)


def sweep_windows(context: Context) -> None:
    """Begin the windows whose time has come, and end those whose time is over. Safe to call at any time, by many."""
    moment = now()
    with context.database.read() as session:
        due = session.scalars(select(MaintenanceWindow).where(MaintenanceWindow.next_at <= moment)).all()
        begun = [_begun_of(row, row.next_at) for row in due if row.next_at is not None]
    for each in begun:
        try:
            problem = _begin(context, each)
            # After the act: who dies in between is followed by one who asks again, and gets the same evacuation.
            _to_the_next(context, each.window_id, each.at, problem)
        except (Refused, ValueError, LookupError):
            # A zone that is not known here, a row that was spoilt: it must hold no other window.
            log.exception("window.broken", window=each.window_id)
    _end_those_over(context, moment)


def _begin(context: Context, begun: _Begun) -> Problem | None:
    """Why nothing was begun, None if it was."""
    restore_at = begun.end if begun.restore else None
    try:
        if begun.group is not None:
            wishes = rolls.RollWishes(begun.hold_s, begun.end, restore_at, begun.window_id)
            rolls.begin_roll(context, begun.group, wishes)
        elif begun.node is not None:
            of_node = Wishes(
                deadline=before_hold(begun.end, begun.hold_s),
                restore_at=restore_at,
                hold_s=begun.hold_s,
                window=True,
                cause=cause_of(WINDOW, begun.window_id),
            )
            evacuations.evacuate(context, begun.node, of_node)
    except Refused as error:
        return error.problem
    return None


def _to_the_next(context: Context, window_id: int, begun_at: datetime, problem: Problem | None) -> None:
    with context.unit() as unit:
        same = (MaintenanceWindow.id == window_id, MaintenanceWindow.next_at == begun_at)
        row = unit.session.scalar(select(MaintenanceWindow).where(*same).with_for_update())
        if row is None:
            return
        row.next_at = next_start(row.cron, row.zone, after=max(begun_at, now())) if row.cron else None
        row.problem = problem.as_dict() if problem else None
        kind = "window.skipped" if problem else "window.begun"
        node, group = _of(row)
        unit.note(kind, node=node, window=row.id, group=group, problem=row.problem, at_=begun_at.isoformat())


def _end_those_over(context: Context, moment: datetime) -> None:
    with context.database.read() as session:
        over = _over(session, moment)
    for evacuation_id, node, state in over:
        try:
            if not keep_for_alert(context, evacuation_id):
                _end(context, evacuation_id, node, state, moment=moment)
        except (Refused, ValueError, LookupError):
            # A row that was spoilt: it must hold no other node.
            log.exception("window.end_broken", evacuation=evacuation_id)


def _end(context: Context, evacuation_id: int, node: str, state: EvacuationState, *, moment: datetime) -> None:
    # What is refused now was done by somebody else, or cannot be done.
    with suppress(Refused):
        if state in (_E.PLANNED, _E.RUNNING, _E.PAUSED):
            evacuations.cancel(context, evacuation_id, undo=False, to_restore=True)
    try:
        evacuations.restore(context, node, only=evacuation_id)
    except Refused as error:
        if error.code == "evacuation_open":
            # It was blocked when all were read, and moves again: it is given up by the next look.
            return
    with context.database.write() as write:
        same = (Evacuation.id == evacuation_id, Evacuation.restore_at <= moment)
        write.execute(update(Evacuation).where(*same).values(restore_at=None))


def _over(session: Session, moment: datetime) -> list[tuple[int, str, EvacuationState]]:
    query = select(Evacuation).where(Evacuation.restore_at <= moment)
    return [(row.id, row.node.name, row.state) for row in session.scalars(query.order_by(Evacuation.id))]
