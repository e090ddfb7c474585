"""The queue played in advance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.planner.admission import Room, Wish
from haulier.planner.forecast import MOST, Running, Span, Waiting, forecast
from haulier.planner.labels import LabelRule, Labels, Rate
from haulier.planner.limits import Closed, Hold, Limits

NODES = ("a", "b", "c")
_pairs = st.tuples(st.sampled_from(NODES), st.sampled_from(NODES)).filter(lambda pair: pair[0] != pair[1])
_limit = st.none() | st.integers(1, 3)


def wait(number: int, source: str = "a", target: str = "b", *, takes_s: float = 10.0, held: str = "") -> Waiting:
    return Waiting(Wish(number, source, target, blocked=Hold("batch", held) if held else None), takes_s)


def test_one_after_the_other() -> None:
    spans = forecast([wait(1), wait(2, takes_s=5)], [Running(0, "a", "b", 4.0)], Room(Limits(cluster=1), [("a", "b")]))
    assert spans == {0: Span(0, 4), 1: Span(4, 14), 2: Span(14, 19)}


def test_side_by_side_as_far_as_the_limits_go() -> None:
    waiting = [wait(1), wait(2), wait(3, "c", "b", takes_s=1), wait(4, "c", "b")]
    spans = forecast(waiting, [], Room(Limits(usual_out=1), ()))
    assert [spans[number].begin_s for number in (1, 2, 3, 4)] == [0, 10, 0, 1]


def test_nobody_can_say_of_one_that_is_held() -> None:
    assert forecast([wait(1, held="paused"), wait(2)], [], Room(Limits(cluster=1), ())) == {2: Span(0, 10)}


def test_nobody_can_say_when_a_node_will_be_back() -> None:
    spans = forecast(
        [wait(1), wait(2, "a", "c")], [], Room(Limits(), (), closed=Closed(targets={"b": "in maintenance"}))
    )
    assert spans == {2: Span(0, 10)}


@pytest.mark.parametrize("limits", [Limits(cluster=0), Limits(out={"a": 0}), Limits(usual_pair=0)])
def test_nobody_can_say_when_a_pause_will_be_over(limits: Limits) -> None:
    assert forecast([wait(1)], [Running(0, "c", "b", 4.0)], Room(limits, [("c", "b")])) == {0: Span(0, 4)}


@given(
    limits=st.builds(Limits, cluster=_limit, usual_out=_limit, usual_in=_limit, usual_pair=_limit),
    drawn=st.lists(st.tuples(_pairs, st.floats(0.1, 100)), max_size=25),
)
def test_limits_hold_at_every_moment_of_it(limits: Limits, drawn: list[tuple[tuple[str, str], float]]) -> None:
    waiting = [wait(number, *pair, takes_s=takes_s) for number, (pair, takes_s) in enumerate(drawn)]
    spans = forecast(waiting, [], Room(limits, ()))
    assert set(spans) == set(range(len(drawn))), "with room for one, everybody's turn comes"
    for span in spans.values():
        together = [n for n, other in spans.items() if other.begin_s <= span.begin_s < other.end_s]
        assert limits.cluster is None or len(together) <= limits.cluster
        for place, allowed in ((0, limits.usual_out), (1, limits.usual_in)):
            nodes = [drawn[n][0][place] for n in together]
            assert allowed is None or all(nodes.count(node) <= allowed for node in nodes)


def label(number: int, name: str, *, takes_s: float = 1.0) -> Waiting:
    return Waiting(Wish(number, "a", "b", name), takes_s)


def test_rate_of_a_label_is_waited_for() -> None:
    labels = Labels({"slow": LabelRule(rate=Rate(2, 60))}, {"slow": [-50.0]})
    waiting = [label(number, "slow") for number in range(1, 5)]
    spans = forecast(waiting, [], Room(Limits(), (), labels=labels))
    assert [round(spans[number].begin_s) for number in (1, 2, 3, 4)] == [0, 10, 60, 70]


def test_rate_of_a_label_is_waited_for_beside_a_limit() -> None:
    """The first's end and the rate both let somebody in, in their order."""
    labels = Labels({"slow": LabelRule(rate=Rate(1, 10))})
    waiting = [label(1, "slow", takes_s=25), label(2, "slow"), label(3, "other", takes_s=7), label(4, "other")]
    spans = forecast(waiting, [], Room(Limits(cluster=2), (), labels=labels))
    assert [round(spans[number].begin_s) for number in (1, 2, 3, 4)] == [0, 10, 0, 7]


def test_an_end_and_a_rate_at_one_moment_let_in_who_stands_in_front() -> None:
    """The first of the label waits for the end too, the second for the rate only."""
    labels = Labels({"slow": LabelRule(rate=Rate(1, 10))}, {"slow": [-5.0]})
    waiting = [
        Waiting(Wish(1, "a", "b"), 5.0),
        Waiting(Wish(2, "a", "b", "slow"), 1.0),
        Waiting(Wish(3, "c", "b", "slow"), 1.0),
    ]
    spans = forecast(waiting, [], Room(Limits(usual_out=1), (), labels=labels))
    assert [round(spans[number].begin_s) for number in (1, 2, 3)] == [0, 5, 15]


@given(
    limits=st.builds(Limits, cluster=st.integers(1, 3), usual_out=_limit),
    rate=st.builds(Rate, st.integers(1, 3), st.integers(5, 60)),
    drawn=st.lists(st.tuples(_pairs, st.sampled_from((None, "slow")), st.integers(1, 50)), max_size=20),
)
def test_nobody_begins_later_or_earlier_than_who_looks_at_every_moment(
    limits: Limits, rate: Rate, drawn: list[tuple[tuple[str, str], str | None, int]]
) -> None:
    waiting = [Waiting(Wish(number, *pair, name), takes_s) for number, (pair, name, takes_s) in enumerate(drawn)]
    spans = forecast(waiting, [], Room(limits, (), labels=Labels({"slow": LabelRule(rate=rate)})))
    expected = begins(waiting, limits, rate)
    assert {number: round(span.begin_s) for number, span in spans.items()} == expected


def begins(waiting: list[Waiting], limits: Limits, rate: Rate) -> dict[int, int]:
    """The same in the plainest way: second by second, counted anew each time."""
    begun, second = dict[int, int](), 0
    while len(begun) < len(waiting):
        for each in waiting:
            now_at_work = [other for other in waiting if begun.get(other.wish.id, second + 1) <= second]
            now_at_work = [other for other in now_at_work if second < begun[other.wish.id] + other.takes_s]
            leaving = sum(other.wish.source == each.wish.source for other in now_at_work)
            lately = sum(
                second - begun[w.wish.id] < rate.period_s for w in waiting if w.wish.label and w.wish.id in begun
            )
            full = len(now_at_work) >= (limits.cluster or 0) or (limits.usual_out or 99) <= leaving
            if each.wish.id not in begun and not full and not (each.wish.label and lately >= rate.allowed):
                begun[each.wish.id] = second
        second += 1
    return begun


def test_label_that_fills_up_hides_nobody_behind_it() -> None:
    labels = Labels({"slow": LabelRule(rate=Rate(1, 3600))})
    waiting = [*(label(number, "slow", takes_s=600) for number in range(100)), wait(100)]
    assert forecast(waiting, [], Room(Limits(cluster=4), (), labels=labels))[100].begin_s == 0


def test_thousands_with_many_begun_are_forecast_by_a_few_looks() -> None:
    """No look walks through all that were begun: 2,000 times 5,000 would take a minute."""
    labels = Labels({"slow": LabelRule(rate=Rate(5000, 86_400))}, {"slow": [-float(n) for n in range(4990)]})
    waiting = [label(number, "slow") for number in range(MOST)]
    spans = forecast(waiting, [], Room(Limits(cluster=8), (), labels=labels))
    assert len(spans) == MOST


def test_many_of_a_paused_label_hide_nobody_behind_them() -> None:
    labels = Labels({"nightly": LabelRule(paused=True)})
    waiting = [*(label(number, "nightly") for number in range(200)), wait(200)]
    assert forecast(waiting, [], Room(Limits(cluster=1), (), labels=labels)) == {200: Span(0, 10)}
