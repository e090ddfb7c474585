"""The one place that knows the time: of the day for what is written down, steady for how long something has lasted.

The time of day may jump, and two hosts never have the same. Whether somebody is dead is therefore not told by it
(haulier/services/sightings.py).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(UTC)


def steady_s() -> float:
    """Seconds since some moment in the past, in this process only; nobody can set this clock."""
    return time.monotonic()
