"""The allowed pause grows for a guest that does not settle, and only then, and never without end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.planner.convergence import next_downtime_limit_ms

PASSES = st.integers(min_value=0, max_value=100_000)
FIRST_MS = st.integers(min_value=1, max_value=60_000)


@pytest.mark.parametrize(
    ("passes", "limit_ms"),
    [(0, 300), (15, 300), (16, 600), (25, 1200), (26, 1200), (34, 1200), (35, 2400), (55, 8000), (10_000, 8000)],
)
def test_table(passes: int, limit_ms: int) -> None:
    assert next_downtime_limit_ms(passes, first_ms=300) == limit_ms


@given(PASSES, FIRST_MS)
def test_never_shorter_than_allowed_and_never_endless(passes: int, first_ms: int) -> None:
    assert first_ms <= next_downtime_limit_ms(passes, first_ms=first_ms) <= max(first_ms, 8_000)


@given(PASSES, FIRST_MS)
def test_never_shrinks(passes: int, first_ms: int) -> None:
    now, later = (next_downtime_limit_ms(each, first_ms=first_ms) for each in (passes, passes + 1))
    assert now <= later


@given(st.integers(min_value=0, max_value=15), FIRST_MS)
def test_patience(passes: int, first_ms: int) -> None:
    assert next_downtime_limit_ms(passes, first_ms=first_ms) == first_ms
