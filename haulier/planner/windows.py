"""When a window that comes again begins the next time. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from haulier.errors import Refused


def find_zone(name: str) -> ZoneInfo:
    """Raises Refused `bad_zone`."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        hint = "A name such as Europe/Berlin, or UTC."
        raise Refused("bad_zone", f"{name!r} is no time zone that is known here", hint) from error


def next_start(cron: str, zone: str, *, after: datetime) -> datetime:
    """The first moment after this one that the cron expression means in that time zone, in UTC.

    As Debian's cron does it where clocks are changed: what falls into an hour that is left out begins after it, and an
    hour that comes twice counts once. Raises Refused for what is no expression, no zone, and for what never comes.
    """
    local = find_zone(zone)
    try:
        return next(CronSim(cron, after.astimezone(local))).astimezone(UTC)
    except (CronSimError, StopIteration, ValueError) as error:
        hint = "Minute, hour, day of the month, month, day of the week: `0 2 * * 6` is each Saturday at two."
        raise Refused("bad_cron", f"{cron!r} is no moment that ever comes: {error}", hint) from error
