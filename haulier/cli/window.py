"""`haulier window …`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.moments import deadline_of, interval, interval_of
from haulier.cli.output import show, show_text, table
from haulier.planner.windows import find_zone
from haulier.services import windows

app = App(name="window", help="Say when nodes are to be empty.")
_COLUMNS = {
    "id": "id",
    "of": "of",
    "next": "next",
    "for": "for",
    "cron": "cron",
    "zone": "zone",
    "last time": "why",
}


@Parameter(name="*")
@dataclass(frozen=True)
class When:
    """When it is to be empty.

    Parameters
    ----------
    duration
        How long the window is, for example 2h.
    cron
        When it begins, again and again: minute, hour, day of the month, month, day of the week.
    at
        When it begins, once: a moment, or an interval from now on.
    zone
        The time zone of the cron expression, and of a moment without an offset, for example Europe/Berlin.
    """

    duration: str
    cron: str | None = None
    at: str | None = None
    zone: str = "UTC"


@app.command
def add(
    node: str | None = None,
    /,
    *,
    when: When,
    group: str | None = None,
    hold: str | None = None,
    restore: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Have a node emptied when a window begins, if it can be done before its end; or each node of a group in turn.

    Parameters
    ----------
    node
        The node; left out for a group.
    group
        A group, through which the window rolls, as `haulier roll GROUP` does.
    hold
        How long a node stays empty, for example 20m, before what was there is brought back.
    restore
        Bring back at the window's end what was there before.
    """
    hold_s = None if hold is None else interval_of(hold)
    at = deadline_of(when.at, zone=find_zone(when.zone)) if when.at else None
    times = windows.Times(interval_of(when.duration), when.cron, at, when.zone, hold_s)
    document = windows.add_window(context(), node, times, group=group, restore=restore)
    how_long = interval(document["duration_s"])
    show(document, f"window {document['id']} of {_of(document)}: {document['next_at']}, for {how_long}")
    if group is not None and hold is None and not restore:
        show_text(f"note: each node of {group} stays empty until haulier restore NODE, and the next waits: see --hold")


def _of(document: dict[str, Any]) -> str:
    return f"group {document['group']}" if document["group"] else str(document["node"])


@app.command(name="list")
def list_() -> None:
    """All windows, the next one first."""
    documents = windows.list_windows(context())
    show(documents, table([_row(document) for document in documents], _COLUMNS))


def _row(document: dict[str, Any]) -> dict[str, Any]:
    problem = document["problem"]
    return {
        **document,
        "of": _of(document),
        "next": document["next_at"] or "over",
        "for": interval(document["duration_s"]) + _way_back(document),
        "why": f"skipped: {problem['message']}" if problem else document["last"] or "",
    }


def _way_back(document: dict[str, Any]) -> str:
    if document["hold_s"] is None:
        return ", then back" if document["restore"] else ""
    return f", back after {interval(document['hold_s'])}" + (" or at its end" if document["restore"] else "")


@app.command
def remove(window_id: int, /) -> None:
    """Take a window away; what it has begun goes on."""
    document = windows.remove_window(context(), window_id)
    show(document, f"removed window {window_id} of {_of(document)}")
