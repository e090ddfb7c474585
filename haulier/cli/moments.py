"""Moments and intervals as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

from haulier.clock import now
from haulier.errors import Refused

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment_of(text: str, *, zone: tzinfo = UTC) -> str:
    """A moment (`2026-05-01T12:00:00+00:00`) or an age (`15m`) as an ISO moment in UTC. Raises Refused `bad_moment`.

    One without an offset is in `zone`.
    """
    try:
        if match := re.fullmatch(r"(\d{1,6})([smhd])", text):
            return (now() - timedelta(**{_UNITS[match[2]]: int(match[1])})).isoformat()
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise Refused("bad_moment", f"{text!r} is no moment", "Write 15m, 2h, or 2026-05-01T12:00:00+00:00.") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC).isoformat()


def deadline_of(text: str, *, zone: tzinfo = UTC) -> datetime:
    """A moment, in `zone` if it has no offset, or an interval from now on (`2h`), in UTC. Raises Refused
    `bad_moment`.
    """
    if re.fullmatch(r"\d{1,6}[smhd]", text):
        return now() + timedelta(seconds=interval_of(text))
    return datetime.fromisoformat(moment_of(text, zone=zone))


def interval_of(text: str) -> float:
    """An interval such as `90s`, `15m`, `2h` or `1d` in seconds. Raises Refused `bad_interval`."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        raise Refused("bad_interval", f"{text!r} is no interval", "Write 90s, 15m, 2h or 1d.")
    return float(int(match[1]) * _SECONDS[match[2]])


def interval(seconds: float) -> str:
    """An interval for people, by its two largest units: `1d`, `4m50s`, `0s`."""
    left, words = max(0, round(seconds)), list[str]()
    for unit, length in reversed(_SECONDS.items()):
        number, left = divmod(left, length)
        if number and len(words) < 2:
            words.append(f"{number}{unit}")
    return "".join(words) or "0s"
