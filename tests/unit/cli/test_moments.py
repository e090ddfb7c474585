"""Intervals as people write and read them."""

from __future__ import annotations

import pytest

from haulier.cli.moments import deadline_of, interval, interval_of
from haulier.planner.windows import find_zone


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0s"), (59.6, "1m"), (290.2, "4m50s"), (900, "15m"), (86_400, "1d"), (90_061, "1d1h"), (-3, "0s")],
)
def test_interval_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert interval(seconds) == words


@pytest.mark.parametrize("text", ["45s", "15m", "2h", "1d"])
def test_what_is_written_is_what_is_read(text: str) -> None:
    assert interval(interval_of(text)) == text


@pytest.mark.parametrize(
    ("text", "in_utc"),
    [
        ("2030-12-01T22:00:00", "2030-12-02T03:00:00+00:00"),
        ("2030-07-01T22:00", "2030-07-02T02:00:00+00:00"),
        ("2030-12-01T22:00:00Z", "2030-12-01T22:00:00+00:00"),
        ("2030-12-01T22:00:00+01:00", "2030-12-01T21:00:00+00:00"),
    ],
)
def test_moment_without_an_offset_is_of_the_zone(text: str, in_utc: str) -> None:
    assert deadline_of(text, zone=find_zone("America/New_York")).isoformat() == in_utc
