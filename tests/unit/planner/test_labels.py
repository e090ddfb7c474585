"""A label that is paused begins nothing, one with a rate no more than that in any such time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.planner.admission import Room, Wish, decide
from haulier.planner.labels import LabelRule, Labels, Rate
from haulier.planner.limits import Hold, Limits

PAUSED = LabelRule(paused=True)
SIX = LabelRule(rate=Rate(6, 3600))
_rates = st.builds(Rate, st.integers(1, 4), st.integers(1, 50))


@pytest.mark.parametrize(
    ("seconds", "words"), [(1, "1s"), (90, "90s"), (600, "10m"), (3600, "1h"), (86_400, "1d"), (172_800, "2d")]
)
def test_time_is_told_as_it_is_written(seconds: int, words: str) -> None:
    assert Rate(1, seconds).period == words


def test_label_without_a_rule_holds_nobody() -> None:
    labels = Labels({"nightly": PAUSED, "weekly": LabelRule()})
    assert [labels.hold(label) for label in (None, "daily", "weekly")] == [None] * 3
    assert labels.hold("nightly") == Hold("label", "label nightly is paused")
    assert labels.full() == ["nightly"]


def test_rate_says_its_numbers() -> None:
    labels = Labels({"nightly": SIX}, {"nightly": [-3600.0, -3599.0, -10.0, -9.0, -8.0, -7.0]})
    assert labels.hold("nightly") is None, "the oldest is an hour old"
    labels.take("nightly")
    assert labels.hold("nightly") == Hold("rate", "6 of label nightly were begun in 1h, 6 may be", 6, 6)
    assert labels.next_free_s(["nightly"]) == pytest.approx(1.0, abs=0.01)
    assert labels.hold("nightly", at_s=1.0) is None


def test_what_was_begun_later_than_now_was_begun_now() -> None:
    labels = Labels({"nightly": LabelRule(rate=Rate(1, 60))}, {"nightly": [30.0]})
    assert labels.next_free_s(["nightly"]) == pytest.approx(60.0, abs=0.01)


def test_pause_goes_before_a_rate() -> None:
    labels = Labels({"nightly": LabelRule(paused=True, rate=Rate(1, 60))}, {"nightly": [-1.0]})
    assert labels.hold("nightly") == Hold("label", "label nightly is paused")
    assert labels.next_free_s(labels.full()) is None, "nobody can say when that is over"


@given(rate=_rates, before=st.lists(st.floats(-60, 0), max_size=8), waits=st.lists(st.floats(0, 20), max_size=30))
def test_no_time_of_that_length_has_more(rate: Rate, before: list[float], waits: list[float]) -> None:
    labels = Labels({"x": LabelRule(rate=rate)}, {"x": before})
    moment, begun = 0.0, list[float]()
    for wait in waits:
        moment += wait
        if labels.hold("x", at_s=moment) is None:
            labels.take("x", at_s=moment)
            begun.append(moment)
            together = [other for other in [*before, *begun] if moment - other < rate.period_s]
            assert len(together) <= rate.allowed


@given(rate=_rates, before=st.lists(st.floats(-60, 0), max_size=8))
def test_next_is_free_when_it_is_said_and_not_before(rate: Rate, before: list[float]) -> None:
    labels = Labels({"x": LabelRule(rate=rate)}, {"x": before})
    free_at = labels.next_free_s(labels.full())
    if labels.hold("x") is None:
        assert free_at is None
    else:
        assert free_at is not None
        assert labels.hold("x", at_s=free_at) is None
        assert labels.hold("x", at_s=free_at - 0.01) is not None


def test_room_asks_the_label_first_and_lets_others_by() -> None:
    labels = Labels({"nightly": PAUSED, "slow": LabelRule(rate=Rate(1, 60))})
    wishes = [
        Wish(1, "a", "b", "nightly", overdue=True),
        Wish(2, "a", "b", "slow"),
        Wish(3, "a", "b", "slow"),
        Wish(4, "a", "b"),
    ]
    granted, held = decide(wishes, Room(Limits(usual_in=2), (), labels=labels))
    assert [wish.id for wish in granted] == [2, 4]
    assert {number: hold.limit for number, hold in held.items()} == {1: "label", 3: "rate"}
