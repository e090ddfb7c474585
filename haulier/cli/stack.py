"""`haulier up`, `down`, `doctor`, `events`."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from haulier.cli.around import bare_context, context
from haulier.cli.moments import moment_of
from haulier.cli.output import show, table
from haulier.services.events import list_events
from haulier.stack import local
from haulier.stack.doctor import examine


def up(*, nodes: str = "alpha,beta") -> None:
    """Start the local stack in the background and return when all of it answers.

    Parameters
    ----------
    nodes
        Names of this machine's nodes, separated by commas.
    """
    document = local.up(bare_context(), [name.strip() for name in nodes.split(",") if name.strip()])
    show(document, f"up: nodes {', '.join(document['nodes'])}; state in {bare_context().settings.state}")


def down(*, vms: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Stop the local stack.

    Parameters
    ----------
    vms
        Stop the VMs too; without it they run on.
    """
    document = local.down(bare_context(), vms=vms)
    show(document, "down" if document["stopped"] else "nothing was running")


def doctor() -> int:
    """Look whether this machine has all that is needed. Exit status 1 if not."""
    document = examine(bare_context().settings)
    rows = [{**check, "ok": "ok" if check["ok"] else "MISSING"} for check in document["checks"]]
    show(document, table(rows, {"check": "name", "": "ok", "found": "found", "needed": "needed", "hint": "hint"}))
    return 0 if document["ok"] else 1


def events(*, follow: Annotated[bool, Parameter(negative=())] = False, since: str | None = None) -> None:
    """Print the event log, one JSON object a line.

    Parameters
    ----------
    follow
        Go on with new events until interrupted.
    since
        Leave out what is older: a moment as 2026-05-01T12:00:00+00:00, or an age as 90s, 15m, 2h, 3d.
    """
    around, last = context(), 0
    begin = since and moment_of(since)
    with around.signals.listen("events") as bell:
        while True:
            found = list_events(around, after=last)
            for number, event in found:
                last = number
                if not begin or event["at"] >= begin:
                    print(json.dumps(event), flush=True)  # noqa: T201 - this is the command's output
            if not follow and not found:
                return
            if not found:
                bell.wait(1.0)
