"""Intervals as people write and read them."""

from __future__ import annotations

import pytest

from haulier.cli.moments import interval, interval_of


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0s"), (59.6, "1m"), (290.2, "4m50s"), (900, "15m"), (86_400, "1d"), (90_061, "1d1h"), (-3, "0s")],
)
def test_interval_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert interval(seconds) == words


@pytest.mark.parametrize("text", ["45s", "15m", "2h", "1d"])
def test_what_is_written_is_what_is_read(text: str) -> None:
    assert interval(interval_of(text)) == text
