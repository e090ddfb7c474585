"""The less is left, the slower it is sent; the allowed pause grows for a guest that does not settle, and only then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.planner.convergence import FIRST_PACE, Pace, StreamFacts, choose_pace, next_downtime_limit_ms

MIB = 1 << 20
GIB = 1 << 30
LINE = 1 << 40

PASSES = st.integers(min_value=0, max_value=100_000)
SECONDS = st.floats(min_value=0, max_value=1e9)
FIRST_MS = st.integers(min_value=1, max_value=60_000)


@pytest.mark.parametrize(
    ("passes", "limit_ms"),
    [(0, 300), (15, 300), (16, 600), (25, 1200), (26, 1200), (34, 1200), (35, 2400), (55, 8000), (10_000, 8000)],
)
def test_table(passes: int, limit_ms: int) -> None:
    assert next_downtime_limit_ms(passes, 0.0, first_ms=300) == limit_ms


@pytest.mark.parametrize(
    ("seconds", "limit_ms"), [(0, 30), (60, 30), (61, 60), (76, 120), (100, 240), (170, 7680), (180, 8000), (9e9, 8000)]
)
def test_table_of_a_slow_link(seconds: float, limit_ms: int) -> None:
    """Where a pass takes many seconds nobody waits for fifteen of them."""
    assert next_downtime_limit_ms(2, seconds, first_ms=30) == limit_ms


@given(PASSES, SECONDS, FIRST_MS)
def test_never_shorter_than_allowed_and_never_endless(passes: int, seconds: float, first_ms: int) -> None:
    assert first_ms <= next_downtime_limit_ms(passes, seconds, first_ms=first_ms) <= max(first_ms, 8_000)


@pytest.mark.parametrize(("seconds", "limit_ms"), [(60, 30), (180, 15360), (300, 2_000_000), (9e9, 2_000_000)])
def test_guest_that_may_pause_gets_any_pause_in_the_end(seconds: float, limit_ms: int) -> None:
    facts = StreamFacts(remaining_bytes=GIB, dirty_bytes_per_s=GIB, passes=2, settling_s=seconds)
    assert choose_pace(facts, at_most=MIB, first_ms=30, may_pause=True).downtime_limit_ms == limit_ms
    assert choose_pace(facts, at_most=MIB, first_ms=30).downtime_limit_ms <= 8_000


@given(PASSES, SECONDS, FIRST_MS)
def test_never_shrinks(passes: int, seconds: float, first_ms: int) -> None:
    now = next_downtime_limit_ms(passes, seconds, first_ms=first_ms)
    assert now <= next_downtime_limit_ms(passes + 1, seconds, first_ms=first_ms)
    assert now <= next_downtime_limit_ms(passes, seconds + 1, first_ms=first_ms)


@given(st.integers(min_value=0, max_value=15), st.floats(min_value=0, max_value=60), FIRST_MS)
def test_patience(passes: int, seconds: float, first_ms: int) -> None:
    assert next_downtime_limit_ms(passes, seconds, first_ms=first_ms) == first_ms


FACTS = st.builds(
    StreamFacts,
    remaining_bytes=st.integers(min_value=0, max_value=1 << 44),
    dirty_bytes_per_s=st.integers(min_value=0, max_value=1 << 38),
    passes=st.integers(min_value=0, max_value=200),
)
AT_MOST = st.integers(min_value=1, max_value=LINE)


@pytest.mark.parametrize(
    ("remaining", "dirty_per_s", "passes", "pace"),
    [
        (64 * GIB, 0, 1, Pace(128 * GIB, 1)),
        (96 * MIB, 0, 1, Pace(32 * MIB, 1)),
        (96 * MIB + 2, 0, 1, Pace(192 * MIB + 4, 1)),
        (100 * MIB, 0, 2, Pace(200 * MIB, 30)),
        (1 * MIB, 8 * MIB, 2, Pace(32 * MIB, 30)),
        (1 * MIB, 40 * MIB, 2, Pace(100 * MIB, 30)),
        (1 * MIB, 40 * MIB, 16, Pace(100 * MIB, 60)),
    ],
)
def test_pace(remaining: int, dirty_per_s: int, passes: int, pace: Pace) -> None:
    facts = StreamFacts(remaining_bytes=remaining, dirty_bytes_per_s=dirty_per_s, passes=passes)
    assert choose_pace(facts, at_most=LINE, first_ms=30) == pace


@given(FACTS, AT_MOST, FIRST_MS)
def test_never_faster_than_allowed(facts: StreamFacts, at_most: int, first_ms: int) -> None:
    assert 0 < choose_pace(facts, at_most=at_most, first_ms=first_ms).bytes_per_s <= at_most


@given(FACTS.filter(lambda facts: facts.passes > 1), FIRST_MS)
def test_always_well_ahead_of_the_guest(facts: StreamFacts, first_ms: int) -> None:
    """Slower than the guest dirties its RAM, the stream would never end."""
    assert choose_pace(facts, at_most=1 << 60, first_ms=first_ms).bytes_per_s >= 2 * facts.dirty_bytes_per_s


@given(FACTS.filter(lambda facts: facts.passes <= 1), AT_MOST, FIRST_MS)
def test_no_pause_in_the_first_pass(facts: StreamFacts, at_most: int, first_ms: int) -> None:
    assert choose_pace(facts, at_most=at_most, first_ms=first_ms).downtime_limit_ms == FIRST_PACE.downtime_limit_ms
