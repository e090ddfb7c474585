"""Bandwidth is shared fairly, and at no moment more is used than a budget allows, whoever is told when."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.planner.bandwidth import Flow, fair_shares, next_shares
from haulier.planner.limits import Limits

NODES = ("a", "b", "c", "d")
PAIRS = [(source, target) for source in NODES for target in NODES if source != target]
RATES = st.integers(1, 1000)
BUDGETS = st.builds(
    Limits,
    cluster=st.none() | RATES,
    usual_out=st.none() | RATES,
    usual_in=st.none() | RATES,
    out=st.dictionaries(st.sampled_from(NODES), RATES),
    into=st.dictionaries(st.sampled_from(NODES), RATES),
    pair=st.dictionaries(st.sampled_from(PAIRS), RATES),
)


def flows(*pairs: tuple[str, str]) -> list[Flow]:
    return [Flow(number, *pair) for number, pair in enumerate(pairs)]


def places(budgets: Limits, flow: Flow) -> dict[tuple[str, ...], int]:
    """The budgets that a flow crosses."""
    pair = (flow.source, flow.target)
    found = {
        ("all",): budgets.cluster,
        ("out", flow.source): budgets.out_of(flow.source),
        ("in", flow.target): budgets.into_of(flow.target),
        ("pair", *pair): budgets.pair.get(pair),
    }
    return {place: allowed for place, allowed in found.items() if allowed is not None}


def used(budgets: Limits, shares: dict[int, float], at_work: list[Flow]) -> dict[tuple[str, ...], tuple[float, int]]:
    """What is used of each budget, and what it allows."""
    found: dict[tuple[str, ...], tuple[float, int]] = {}
    for flow in at_work:
        for place, allowed in places(budgets, flow).items():
            found[place] = (found.get(place, (0, 0))[0] + shares[flow.id], allowed)
    return found


def test_one_link_is_divided_alike() -> None:
    assert fair_shares(flows(*[("a", "b")] * 3), Limits(usual_out=90)) == {0: 30, 1: 30, 2: 30}


def test_what_one_cannot_use_the_others_get() -> None:
    """The first is held at its target, so that the second has the rest of what the source may send."""
    budgets = Limits(out={"a": 100}, into={"b": 20})
    assert fair_shares(flows(("a", "b"), ("a", "c")), budgets) == {0: 20, 1: 80}


def test_a_link_of_its_own() -> None:
    budgets = Limits(out={"a": 100}, pair={("a", "b"): 30})
    assert fair_shares(flows(("a", "b"), ("a", "b"), ("a", "c")), budgets) == {0: 15, 1: 15, 2: 70}


def test_without_a_budget_there_is_no_limit() -> None:
    assert fair_shares(flows(("a", "b"), ("c", "d")), Limits(out={"a": 5})) == {0: 5, 1: None}
    assert next_shares(flows(("a", "b"), ("c", "d")), Limits(out={"a": 5})) == {0: 5, 1: None}


def test_newcomer_gets_what_the_first_has_given_and_not_before() -> None:
    budgets = Limits(usual_out=100)
    first, second = Flow(0, "a", "b", share=100, using=100), Flow(1, "a", "b")
    assert next_shares([first, second], budgets) == {0: 50, 1: 0}
    told = replace(first, share=50, using=50)
    assert next_shares([told, second], budgets) == {0: 50, 1: 50}


def test_one_that_had_no_limit_holds_the_others_until_it_has_been_told() -> None:
    budgets = Limits(usual_out=100)
    free, second = Flow(0, "a", "b", share=None, using=None), Flow(1, "a", "b")
    assert next_shares([free, second], budgets) == {0: 50, 1: 0}
    assert next_shares([replace(free, share=50, using=50), second], budgets) == {0: 50, 1: 50}


def test_the_last_one_gets_all() -> None:
    assert next_shares([Flow(1, "a", "b", share=50, using=50)], Limits(usual_out=100)) == {1: 100}


def test_a_share_that_was_taken_back_too_early_may_be_given_again() -> None:
    """It was to give, has not done so yet, and now nobody wants it."""
    assert next_shares([Flow(0, "a", "b", share=50, using=100)], Limits(usual_out=100)) == {0: 100}


def test_one_that_begins_fixed_leaves_half_of_what_is_free() -> None:
    copy = Flow(0, "a", "b", fixed=True)
    assert next_shares([copy], Limits(usual_out=100)) == {0: 50}
    assert next_shares([Flow(1, "a", "b", share=40, using=40), copy], Limits(usual_out=100)) == {0: 30, 1: 50}


def test_one_that_is_fixed_is_gone_round() -> None:
    copy = Flow(0, "a", "b", share=50, using=50, fixed=True)
    others = [Flow(1, "a", "b"), Flow(2, "a", "b")]
    assert next_shares([copy, *others], Limits(usual_out=100)) == {0: 50, 1: 25, 2: 25}
    assert next_shares([copy, *others], Limits(usual_out=30)) == {0: 50, 1: 0, 2: 0}


def test_one_that_cannot_be_told_of_a_budget_holds_nobody() -> None:
    copy = Flow(0, "a", "b", share=None, using=None, fixed=True)
    assert next_shares([copy, Flow(1, "a", "b")], Limits(usual_out=100)) == {0: 50, 1: 50}


@given(st.lists(st.sampled_from(PAIRS), min_size=1, max_size=8), BUDGETS)
def test_shares_are_max_min_fair(pairs: list[tuple[str, str]], budgets: Limits) -> None:
    """No budget is exceeded, and whoever wants more crosses one that is used up and in which nobody has more."""
    at_work = flows(*pairs)
    shares = fair_shares(at_work, budgets)
    numbers = {number: float("inf") if share is None else share for number, share in shares.items()}
    in_use = used(budgets, numbers, at_work)
    for flow in at_work:
        crossed = places(budgets, flow)
        assert (shares[flow.id] is None) == (not crossed)
        if not crossed:
            continue
        assert all(in_use[place][0] <= allowed for place, allowed in crossed.items())
        # What is lost by rounding is less than one for each that shares it.
        assert any(
            allowed - in_use[place][0] < len(sharers) and all(numbers[each.id] <= numbers[flow.id] for each in sharers)
            for place, allowed in crossed.items()
            if (sharers := [each for each in at_work if place in places(budgets, each)])
        )


MOVES = st.one_of(
    st.tuples(st.just("begins"), st.sampled_from(PAIRS)),
    st.tuples(st.just("ends"), st.integers(0, 7)),
    st.tuples(st.just("is told"), st.integers(0, 7)),
)


@given(BUDGETS, st.lists(MOVES, max_size=40))
def test_never_more_is_used_than_a_budget_allows(budgets: Limits, moves: list[tuple[str, object]]) -> None:
    """Flows begin, end, and are told of their shares in any order; at the end all have been, and have what is fair."""
    at_work: list[Flow] = []
    number = 0

    def share_out() -> None:
        shares = next_shares(at_work, budgets)
        at_work[:] = [replace(flow, share=shares[flow.id]) for flow in at_work]

    def tell(place: int) -> None:
        at_work[place] = replace(at_work[place], using=at_work[place].share)

    def look() -> None:
        using = {flow.id: float("inf") if flow.using is None else flow.using for flow in at_work}
        # One that was told, and whose share grew since, may be told of that at any moment.
        mays = {flow.id: max(using[flow.id], flow.share or 0) for flow in at_work}
        assert all(in_use <= allowed for in_use, allowed in used(budgets, mays, at_work).values())

    for what, which in moves:
        if isinstance(which, tuple):
            at_work.append(Flow(number, *which))
            number += 1
        elif which < len(at_work):  # type: ignore[operator]
            at_work.pop(which) if what == "ends" else tell(which)  # type: ignore[arg-type]
        share_out()
        look()
    for _ in range(len(at_work) + 2):
        for place in range(len(at_work)):
            tell(place)
        share_out()
    assert {flow.id: flow.share for flow in at_work} == fair_shares(at_work, budgets)


@pytest.mark.parametrize("using", [None, 100])
def test_nothing_is_given_that_somebody_may_still_use(using: int | None) -> None:
    budgets = Limits(into={"b": 60})
    assert next_shares([Flow(0, "a", "b", share=10, using=using), Flow(1, "c", "b")], budgets)[1] == 0
