"""The one place that knows the time: of the day for what is written down, steady for how long something has lasted.

The time of day may jump, and two hosts never have the same. Whether somebody is dead is therefore not told by it
(haulier/services/sightings.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf


def now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(UTC)


def steady_s() -> float:
    """Seconds since some moment in the past, in this process only; nobody can set this clock."""
    return time.monotonic()


@dataclass(slots=True)
class Pace:
    """For what is to be done once in so many seconds at most, however often somebody comes by."""

    every_s: float
    _last_s: float = -inf

    def is_due(self) -> bool:
        """Whether it is to be done now; who is told so does it."""
        moment = steady_s()
        if moment - self._last_s < self.every_s:
            return False
        self._last_s = moment
        return True
