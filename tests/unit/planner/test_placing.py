"""Guests are placed where they fit and nowhere else, never worse than by the greedy start, and always the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.crowded import crowded
from haulier.errors import Problem
from haulier.planner.placing import search
from haulier.planner.placing.arrangement import Arrangement, pour
from haulier.planner.placing.cluster import GIB, Cluster, Guest, Host, Rule, RuleKind, StorageRoom
from haulier.planner.placing.fitting import breaks_by_itself
from haulier.planner.placing.greedy import arrange
from haulier.planner.placing.plan import place
from haulier.planner.placing.search import improve
from haulier.planner.placing.spare import without_spare
from tests.unit.planner.clusters import clusters

FOREVER = 1000.0


def still() -> float:
    """A clock that stands still: nothing is ever cut short."""
    return 0.0


def require_sound(found: Arrangement) -> None:
    """Counted anew from the places alone, by nothing that the planner counts with."""
    cluster = found.cluster
    placed = {name: cluster.guest_named[name] for name in found.places}
    for host in cluster.hosts:
        here = [guest for name, guest in placed.items() if found.places[name] == host.name]
        running = [guest for guest in here if guest.runs]
        assert not running or host.ram_taken_bytes + sum(guest.ram_bytes for guest in running) <= host.ram_bytes
        assert not running or host.cpus_taken + sum(guest.cpus for guest in running) <= host.cpus
        needs = Counter[str]()
        for guest in here:
            needs.update({} if host.name in guest.near else guest.storages)
        for storage, size in needs.items():
            assert host.storages[storage].shared or size <= host.storages[storage].free_bytes
        for guest in here:
            assert host.closed is None
            assert host.name not in guest.avoids
            assert not (guest.runs and guest.accel and host.accel and guest.accel != host.accel)
            assert host.bridges is None or guest.bridges <= host.bridges
    for rule in cluster.rules:
        if rule.hard:
            require_kept(rule, found, placed)


def left_by_others(rule: Rule, cluster: Cluster) -> set[str | None]:
    """Where those of a rule are that stay, until they have got away."""
    return {guest.leaving for guest in cluster.staying if guest.name in rule.guests}


def require_kept(rule: Rule, found: Arrangement, placed: dict[str, Guest]) -> None:
    moved = [found.places[name] for name in placed if name in rule.guests]
    staying = [guest.host for guest in found.cluster.staying if guest.name in rule.guests]
    for host in moved:
        assert not breaks_by_itself(rule, host)
    if rule.kind is RuleKind.APART:
        assert len(set(moved)) == len(moved)
        assert not set(moved) & set(staying)
        assert not set(moved) & left_by_others(rule, found.cluster)
    if rule.kind is RuleKind.TOGETHER and moved:
        assert len(set(moved)) == 1
        assert not staying or moved[0] in staying


@given(clusters())
@settings(max_examples=60)
def test_nothing_is_overfull_and_every_rule_is_kept(cluster: Cluster) -> None:
    start = arrange(cluster)
    require_sound(start)
    found = improve(start, clock=still, time_s=FOREVER).arrangement
    require_sound(found)
    assert found.cost() <= start.cost()
    assert found.cost() >= found.bound() * (1 - 1e-9)


@given(clusters())
@settings(max_examples=20)
def test_same_cluster_gets_same_places(cluster: Cluster) -> None:
    first = place(cluster, clock=still, time_s=FOREVER)
    assert place(cluster, clock=still, time_s=FOREVER) == first
    named = {move.guest for move in first.moves} | {each.guest for each in first.blocked}
    assert named == {guest.name for guest in cluster.guests}


@given(clusters())
@settings(max_examples=30)
def test_running_count_is_what_the_places_add_up_to(cluster: Cluster) -> None:
    found = arrange(cluster)
    again = found.copy()
    for guest in cluster.guests:
        host = again.places.get(guest.name)
        again.take(guest)
        if host:
            again.put(guest, host)
    assert again.cost() == pytest.approx(found.cost())
    assert [again.ram_taken(host.name) for host in cluster.hosts] == [
        found.ram_taken(host.name) for host in cluster.hosts
    ]


def test_solver_places_whom_the_start_leaves_out() -> None:
    """Balance parts the two large ones; there is room for all only if they are together."""
    there = (Host("a", 8 * GIB), Host("b", 8 * GIB))
    movers = tuple(Guest(f"g{number}", "away", size * GIB) for number, size in enumerate((4, 4, 3, 3, 2)))
    start = arrange(Cluster(there, movers))
    found = improve(start, clock=still, time_s=FOREVER).arrangement
    assert len(start.homeless) == 1
    assert not found.homeless
    require_sound(found)


def test_crowd_that_the_start_cannot_place_is_placed() -> None:
    cluster = crowded(guests=60, hosts=8, fill=0.985, seed=4)
    start = arrange(cluster)
    found = improve(start, clock=still, time_s=FOREVER)
    assert start.homeless
    assert not found.arrangement.homeless
    require_sound(found.arrangement)
    assert found.arrangement.cost() <= found.arrangement.bound() * 1.02


def test_answer_of_the_solver_that_is_worse_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that does not fit: it is counted again."""
    cluster = crowded(guests=60, hosts=8, fill=0.985, seed=4)
    start = arrange(cluster)
    for answer in ({}, {guest.name: "h000" for guest in cluster.guests}):
        monkeypatch.setattr(search, "solve", lambda *_, answer=answer, **__: answer)
        assert improve(start, clock=still, time_s=FOREVER).arrangement.places == start.places


def test_when_the_time_is_over_the_start_stands() -> None:
    cluster = crowded(guests=60, hosts=8, fill=0.985, seed=4)
    ticks = count()
    found = improve(arrange(cluster), clock=lambda: float(next(ticks)), time_s=0.5)
    assert found.cut_short
    assert found.arrangement.places == arrange(cluster).places


def test_soft_rule_gives_way_and_hard_one_does_not() -> None:
    one = (Host("a", 8 * GIB),)
    pair = tuple(Guest(name, "away", GIB) for name in ("x", "y"))
    apart = Rule("pair", RuleKind.APART, frozenset(("x", "y")))
    hard = place(Cluster(one, pair, rules=(apart,)), clock=still, time_s=FOREVER)
    soft = place(Cluster(one, pair, rules=(replace(apart, hard=False),)), clock=still, time_s=FOREVER)
    assert [each.problem.code for each in hard.blocked] == ["rule"]
    assert not soft.blocked
    two = (*one, Host("b", 8 * GIB, ram_taken_bytes=6 * GIB))
    wished = place(Cluster(two, pair, rules=(replace(apart, hard=False),)), clock=still, time_s=FOREVER)
    assert {move.target for move in wished.moves} == {"a", "b"}


@pytest.mark.parametrize(("is_held", "code"), [(False, "partner_leaving"), (True, "rule")])
def test_one_that_is_about_to_leave_keeps_those_away_that_must_be_apart(is_held: bool, code: str) -> None:
    """Its move may fail. Whom a wish keeps apart does not wait."""
    hosts = (Host("a", 8 * GIB, closed=Problem("closed", "closed")), Host("b", 8 * GIB), Host("c", 8 * GIB))
    mail = Guest("mail", "c", GIB, leaving="b", is_held=is_held)
    rule = Rule("pair", RuleKind.APART, frozenset(("web", "mail")))
    cluster = Cluster(hosts, (Guest("web", "a", GIB),), (mail,), (rule,))
    (blocked,) = place(cluster, clock=still, time_s=FOREVER).blocked
    assert blocked.problem.code == code
    assert "rule pair (apart) keeps it from b" in blocked.problem.message
    wish = replace(cluster, rules=(replace(rule, hard=False),))
    assert [move.target for move in place(wish, clock=still, time_s=FOREVER).moves] == ["b"]
    only_b = (hosts[0], hosts[1])
    assert place(replace(cluster, hosts=only_b), clock=still, time_s=FOREVER).blocked[0].problem.code == code


def test_group_that_must_be_together_goes_as_one_or_not_at_all() -> None:
    group = tuple(Guest(name, "away", 3 * GIB) for name in ("x", "y"))
    together = (Rule("group", RuleKind.TOGETHER, frozenset(("x", "y"))),)
    narrow = place(
        Cluster((Host("a", 5 * GIB), Host("b", 5 * GIB)), group, rules=together), clock=still, time_s=FOREVER
    )
    assert [each.guest for each in narrow.blocked] == ["x", "y"]
    wide = place(Cluster((Host("a", 5 * GIB), Host("b", 6 * GIB)), group, rules=together), clock=still, time_s=FOREVER)
    assert [move.target for move in wide.moves] == ["b", "b"]


def test_blocked_guest_says_why_with_numbers() -> None:
    there = (
        Host("a", 4 * GIB, ram_taken_bytes=3 * GIB),
        Host(
            "b", 8 * GIB, closed=Problem("node_in_maintenance", "b is in maintenance", "haulier node maintenance b off")
        ),
        Host("c", 4 * GIB, ram_taken_bytes=2 * GIB),
    )
    (blocked,) = place(Cluster(there, (Guest("x", "away", 4 * GIB),)), clock=still, time_s=FOREVER).blocked
    assert blocked.problem.code == "no_ram"
    assert "a has 1.0 GiB of RAM left, it needs 4.0 GiB" in blocked.problem.message
    assert "b is in maintenance" in blocked.problem.message
    assert blocked.problem.hint


def test_guest_goes_where_its_replica_is_if_that_is_not_much_fuller() -> None:
    room = {"local": StorageRoom()}
    there = (
        Host("a", 64 * GIB, ram_taken_bytes=20 * GIB, storages=room),
        Host("b", 64 * GIB, ram_taken_bytes=21 * GIB, storages=room),
    )
    guest = Guest("x", "away", GIB, storages={"local": 50 * GIB}, near=frozenset("b"))
    (move,) = place(Cluster(there, (guest,)), clock=still, time_s=FOREVER).moves
    assert move.target == "b"
    assert "replica" in move.reason


def test_loads_before_and_after_count_who_cannot_leave() -> None:
    leaving = Host("old", 16 * GIB, closed=Problem("evacuating", "it is being emptied"))
    target = Host("new", 16 * GIB, ram_taken_bytes=10 * GIB)
    movers = (Guest("fits", "old", 4 * GIB), Guest("large", "old", 8 * GIB))
    old, new = place(Cluster((leaving, target), movers), clock=still, time_s=FOREVER).loads
    assert (old.ram_before_bytes, old.ram_after_bytes) == (12 * GIB, 8 * GIB)
    assert (new.ram_before_bytes, new.ram_after_bytes) == (10 * GIB, 14 * GIB)


def test_spare_tells_which_host_may_not_fail() -> None:
    there = (Host("a", 8 * GIB), Host("b", 8 * GIB))
    movers = tuple(Guest(f"g{number}", "away", 3 * GIB) for number in range(3))
    plan = place(Cluster(there, movers), clock=still, time_s=FOREVER)
    assert not plan.blocked
    assert {problem.code for problem in plan.spare} == {"no_spare"}
    roomy = place(Cluster((*there, Host("c", 8 * GIB)), movers), clock=still, time_s=FOREVER)
    assert roomy.spare == ()


@given(
    rooms=st.lists(st.integers(-2, 12), min_size=1, max_size=7),
    sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 8)), max_size=15),
)
def test_spare_is_found_as_if_all_rooms_were_asked_each_time(rooms: list[int], sizes: list[tuple[int, int]]) -> None:
    names = [f"h{number}" for number in range(len(rooms))]
    there = [Guest(f"g{number}", names[at % len(names)], ram) for number, (at, ram) in enumerate(sizes)]
    hosts = tuple(Host(name, 20, 20 - room) for name, room in zip(names, rooms, strict=True))
    found = {problem.message.split()[1] for problem in without_spare(Arrangement(Cluster(hosts, (), tuple(there))))}
    assert found == {name for name in names if not _others_take(name, dict(zip(names, rooms, strict=True)), there)}


def _others_take(failed: str, free: dict[str, int], there: list[Guest]) -> bool:
    left = {name: room for name, room in free.items() if name != failed}
    for guest in sorted((each for each in there if each.host == failed), key=lambda each: -each.ram_bytes):
        largest = max(left, key=lambda name: left[name], default=None)
        if largest is None or left[largest] < guest.ram_bytes:
            return False
        left[largest] -= guest.ram_bytes
    return True


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=6),
    st.integers(0, 100),
    st.lists(st.integers(0, 10), min_size=6, max_size=6),
)
def test_no_way_of_pouring_is_below_the_bound(vessels: list[tuple[int, int]], amount: int, parts: list[int]) -> None:
    whole = sum(parts[: len(vessels)])
    shares = [amount * part / whole if whole else amount / len(vessels) for part in parts[: len(vessels)]]
    some = sum((taken + share) ** 2 / size for (taken, size), share in zip(vessels, shares, strict=True))
    assert pour(vessels, amount) <= some * (1 + 1e-9) + 1e-9


def test_without_any_host_everything_is_blocked() -> None:
    plan = place(Cluster((), (Guest("x", "away", GIB),)), clock=still, time_s=FOREVER)
    assert [each.problem.code for each in plan.blocked] == ["no_target"]
    assert without_spare(arrange(Cluster((), ()))) == ()
