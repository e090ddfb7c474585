"""When what lies in quarantine may be destroyed: its time is over, by a clock that has had time to be set."""

from __future__ import annotations

from collections.abc import Mapping

from haulier.services.context import Context
from haulier.services.sightings import Seen

# As long as it may take until a host that has just begun has the right time.
_DOUBT_S = 600.0


def surely_over(context: Context, kind: str, over: Mapping[int, object], *, asked: float) -> set[int]:
    """Of those of a kind whose time is over now, by their numbers: for whom it has been so for a while, by the steady
    clock of this process. A host may begin with a wrong time, and what is destroyed is not to be had back. `asked`
    as for every sighting.
    """
    doubt_s = min(_DOUBT_S, context.settings.tpm_quarantine_s)
    seen = {number: Seen(value, doubt_s) for number, value in over.items()}
    return context.sightings.unchanged(kind, seen, asked=asked)
