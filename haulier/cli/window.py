"""`haulier window …`."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import App, Parameter

from haulier.cli.around import context
from haulier.cli.moments import deadline_of, interval, interval_of
from haulier.cli.output import show, table
from haulier.services import windows

app = App(name="window", help="Say when nodes are to be empty.")
_COLUMNS = {
    "id": "id",
    "node": "node",
    "next": "next",
    "for": "for",
    "cron": "cron",
    "zone": "zone",
    "last time": "why",
}


@app.command
def add(
    node: str,
    /,
    *,
    duration: str,
    cron: str | None = None,
    at: str | None = None,
    zone: str = "UTC",
    restore: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Have a node emptied when a window begins, if it can be done before its end.

    Parameters
    ----------
    node
        The node.
    duration
        How long the window is, for example 2h.
    cron
        When it begins, again and again: minute, hour, day of the month, month, day of the week.
    at
        When it begins, once: a moment, or an interval from now on.
    zone
        The time zone of the cron expression, for example Europe/Berlin.
    restore
        Bring back at its end what was there before.
    """
    times = windows.Times(interval_of(duration), cron, deadline_of(at) if at else None, zone)
    document = windows.add_window(context(), node, times, restore=restore)
    show(document, f"window {document['id']} of {node}: {document['next_at']}, for {interval(document['duration_s'])}")


@app.command(name="list")
def list_() -> None:
    """All windows, the next one first."""
    documents = windows.list_windows(context())
    show(documents, table([_row(document) for document in documents], _COLUMNS))


def _row(document: dict[str, Any]) -> dict[str, Any]:
    problem = document["problem"]
    return {
        **document,
        "next": document["next_at"] or "over",
        "for": interval(document["duration_s"]) + (", then back" if document["restore"] else ""),
        "why": f"skipped: {problem['message']}" if problem else "",
    }


@app.command
def remove(window_id: int, /) -> None:
    """Take a window away; what it has begun goes on."""
    document = windows.remove_window(context(), window_id)
    show(document, f"removed window {window_id} of {document['node']}")
