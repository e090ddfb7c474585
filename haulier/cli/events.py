"""`haulier events`."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from haulier.cli.around import context
from haulier.cli.moments import moment_of
from haulier.services.events import list_events


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
    begin = None if since is None else moment_of(since)
    with around.signals.listen("events") as bell:
        while True:
            found = list_events(around, after=last)
            for number, event in found:
                last = number
                if begin is None or event["at"] >= begin:
                    print(json.dumps(event), flush=True)  # noqa: T201 - this is the command's output
            if not follow and not found:
                return
            if not found:
                bell.wait(1.0)
