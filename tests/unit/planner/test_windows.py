"""When a window begins the next time, also where clocks are changed; what never comes is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from haulier.errors import Refused
from haulier.planner.windows import next_start


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "zone", "after", "begins"),
    [
        ("0 2 * * 6", "UTC", "2026-11-30 12:00", "2026-12-05 02:00"),
        ("0 2 * * 6", "Europe/Berlin", "2026-11-30 12:00", "2026-12-05 01:00"),
        ("0 2 * * 6", "UTC", "2026-12-05 02:00", "2026-12-12 02:00"),
        # Clocks go forward at two: that hour is not there, and the window begins after it.
        ("30 2 * * *", "Europe/Berlin", "2027-03-28 00:00", "2027-03-28 01:00"),
        # They go back at three: half past two comes twice, and counts once.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", "2026-10-25 00:30"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 00:30", "2026-10-26 01:30"),
        ("0 0 29 2 *", "UTC", "2026-01-01 00:00", "2028-02-29 00:00"),
    ],
)
def test_next_start(cron: str, zone: str, after: str, begins: str) -> None:
    assert next_start(cron, zone, after=at(after)) == at(begins)


@pytest.mark.parametrize(
    ("cron", "zone", "code"),
    [
        ("0 2 30 2 *", "UTC", "bad_cron"),
        ("often", "UTC", "bad_cron"),
        ("0 25 * * *", "UTC", "bad_cron"),
        ("", "UTC", "bad_cron"),
        ("1" * 5000 + " * * * *", "UTC", "bad_cron"),
        ("0 2 * * *", "Middle/Earth", "bad_zone"),
        ("0 2 * * *", "../etc/passwd", "bad_zone"),
        ("0 2 * * *", "", "bad_zone"),
    ],
)
def test_what_never_comes_is_refused(cron: str, zone: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        next_start(cron, zone, after=at("2026-11-30 12:00"))
    assert refused.value.code == code
