"""Who may begin: no limit is ever exceeded, nobody who could begin waits, nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.planner.admission import AGE_S, PATIENCE_S, Room, Wish, decide, rank
from haulier.planner.limits import Closed, Hold, Limits

NODES = ("a", "b", "c", "d")
_pairs = st.tuples(st.sampled_from(NODES), st.sampled_from(NODES)).filter(lambda pair: pair[0] != pair[1])
_limit = st.none() | st.integers(0, 4)
_limits = st.builds(
    Limits,
    cluster=_limit,
    usual_out=_limit,
    usual_in=_limit,
    usual_pair=_limit,
    out=st.dictionaries(st.sampled_from(NODES), st.integers(0, 3)),
    into=st.dictionaries(st.sampled_from(NODES), st.integers(0, 3)),
    pair=st.dictionaries(_pairs, st.integers(0, 3)),
)
_wishes = st.lists(st.tuples(_pairs, st.booleans()), max_size=30)


def wishes(drawn: Iterable[tuple[tuple[str, str], bool]]) -> list[Wish]:
    return [Wish(number, *pair, overdue=overdue) for number, (pair, overdue) in enumerate(drawn)]


def excess(limits: Limits, at_work: Iterable[tuple[str, str]]) -> list[str]:
    """The limits that those at work exceed, counted in the simplest way."""
    pairs = list(at_work)
    found = [("cluster", len(pairs), limits.cluster)]
    for node in NODES:
        leaving, coming = sum(s == node for s, _ in pairs), sum(t == node for _, t in pairs)
        found.append((f"out {node}", leaving, limits.out.get(node, limits.usual_out)))
        found.append((f"in {node}", coming, limits.into.get(node, limits.usual_in)))
    for pair, number in Counter(pairs).items():
        found.append((f"pair {pair}", number, limits.pair.get(pair, limits.usual_pair)))
    return [what for what, number, allowed in found if allowed is not None and number > allowed]


@given(limits=_limits, drawn=_wishes)
def test_no_limit_is_exceeded_and_everybody_is_granted_or_held(limits: Limits, drawn: list) -> None:  # type: ignore[type-arg]
    waiting = wishes(drawn)
    granted, held = decide(waiting, Room(limits, ()))
    assert excess(limits, [(wish.source, wish.target) for wish in granted]) == []
    assert {wish.id for wish in granted} | set(held) == {wish.id for wish in waiting}
    assert not {wish.id for wish in granted} & set(held)


@given(limits=_limits, drawn=_wishes)
def test_whoever_is_held_could_not_begin(limits: Limits, drawn: list) -> None:  # type: ignore[type-arg]
    waiting = [Wish(wish.id, wish.source, wish.target) for wish in wishes(drawn)]
    granted, held = decide(waiting, Room(limits, ()))
    begun = [(wish.source, wish.target) for wish in granted]
    for wish in waiting:
        if wish.id in held:
            assert excess(limits, [*begun, (wish.source, wish.target)])


@given(limits=_limits, drawn=_wishes, begun=st.lists(_pairs, max_size=6))
def test_nothing_fits_into_what_is_full(limits: Limits, drawn: list, begun: list[tuple[str, str]]) -> None:  # type: ignore[type-arg]
    room = Room(limits, begun)
    sources, targets, pairs = room.full_sources(), room.full_targets(), room.full_pairs()
    paused = 0 in (limits.usual_out, limits.usual_in, limits.usual_pair)
    for wish in wishes(drawn):
        place = (wish.source, wish.target)
        is_full = room.is_full or wish.source in sources or wish.target in targets or place in pairs
        held = room.hold(*place) is not None
        assert held or not is_full
        assert is_full or not held or paused, "who asks for all but the full ones gets who can begin"


@given(limits=_limits, begun=st.lists(_pairs, max_size=6), pair=_pairs)
def test_a_hold_names_a_limit_that_is_full_with_its_numbers(
    limits: Limits, begun: list[tuple[str, str]], pair: tuple[str, str]
) -> None:
    hold = Room(limits, begun).hold(*pair)
    if hold is not None:
        assert hold.in_use is not None and hold.allowed is not None and hold.in_use >= hold.allowed
        assert str(hold.in_use) in hold.text and str(hold.allowed) in hold.text


@pytest.mark.parametrize(
    ("limits", "begun", "limit", "text"),
    [
        (Limits(cluster=1), [("c", "d")], "cluster", "1 are at work in the cluster, 1 may"),
        (Limits(usual_out=1), [("a", "d")], "out", "1 leave a, 1 may"),
        (Limits(usual_out=9, out={"a": 0}), [], "out", "none may leave a: the limit is 0"),
        (Limits(usual_in=1), [("c", "b")], "in", "1 go to b, 1 may"),
        (Limits(into={"b": 2}), [("c", "b"), ("d", "b"), ("a", "b")], "in", "3 go to b, 2 may"),
        (Limits(usual_pair=1), [("a", "b")], "pair", "1 go from a to b, 1 may"),
    ],
)
def test_what_holds(limits: Limits, begun: list[tuple[str, str]], limit: str, text: str) -> None:
    hold = Room(limits, begun).hold("a", "b")
    assert hold is not None
    assert (hold.limit, hold.text) == (limit, text)


def test_a_node_that_is_closed_holds_before_any_limit() -> None:
    room = Room(Limits(cluster=0), (), closed=Closed(sources={"a": "a is silent"}, targets={"b": "b is away"}))
    assert room.hold("a", "b") == Hold("node", "a is silent")
    assert room.hold("c", "b") == Hold("node", "b is away")
    assert (room.full_sources(), room.full_targets()) == (["a"], ["b"])


def test_younger_ones_pass_whoever_is_held() -> None:
    granted, held = decide([Wish(1, "a", "b"), Wish(2, "a", "c")], Room(Limits(usual_in=1), [("d", "b")]))
    assert ([wish.id for wish in granted], list(held)) == ([2], [1])


def _turns(*, overdue: bool, turns: int = 40) -> int | None:
    """In which turn the oldest begins: a and b are never free at the same moment, as long as others may fill them."""
    limits = Limits(usual_out=1, usual_in=1)
    begun = [("a", "c"), ("d", "b")]
    for turn in range(turns):
        begun.pop(turn % 2)
        oldest = Wish(0, "a", "b", overdue=overdue)
        granted, _ = decide([oldest, Wish(1, "a", "c"), Wish(2, "d", "b")], Room(limits, begun))
        if oldest in granted:
            return turn
        # The place that has become free is filled, in the list too.
        begun[turn % 2 : turn % 2] = [(wish.source, wish.target) for wish in granted]
        begun += [("-", "-")] * (2 - len(begun))
    return None


def test_two_nodes_that_are_never_free_together_hold_nobody_for_ever() -> None:
    assert _turns(overdue=False) is None, "without patience this would wait for ever, or the test shows nothing"
    assert _turns(overdue=True) is not None


def test_what_is_kept_is_not_told_as_in_use() -> None:
    room = Room(Limits(usual_out=1, into={"b": 1, "c": 1}), [("x", "b")])
    decide([Wish(1, "a", "b", overdue=True)], room)
    hold = room.hold("a", "c")
    assert hold is not None
    assert (hold.limit, hold.in_use, hold.text) == ("out", 0, "0 leave a, 1 may, 1 is kept for who waits for long")
    assert set(room.full_sources()) == {"x", "a"}


def test_no_more_is_kept_than_the_limit_lets_through() -> None:
    """Five that wait for b from five nodes: two of the nodes are kept, the others are not."""
    overdue = [Wish(number, f"n{number}", "b", overdue=True) for number in range(5)]
    younger = [Wish(10 + number, f"n{number}", "c") for number in range(5)]
    limits = Limits(usual_out=1, into={"b": 2})
    granted, _ = decide([*overdue, *younger], Room(limits, [("x", "b"), ("y", "b")]))
    assert [wish.id for wish in granted] == [12, 13, 14]


def test_the_rank_grows_with_the_filing_and_shrinks_with_priority() -> None:
    at = 1_800_000_000.0
    assert rank(at, priority=50) < rank(at + 1, priority=50) < rank(at, priority=49) < rank(at, priority=20)
    assert rank(at, priority=100) < rank(at - 49 * AGE_S, priority=50), "an evacuation goes before what waits for long"
    assert rank(at, priority=100) > rank(at - 51 * AGE_S, priority=50), "and not before what waits for longer"
    assert rank(at, priority=50, place=499) > rank(at + 1, priority=50)
    assert PATIENCE_S > 0
