"""Few moves, each the best one there is: none overfills a host or breaks a rule, in whatever order they are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.crowded import uneven
from haulier.errors import Problem
from haulier.planner.placing import rebalance as module
from haulier.planner.placing.arrangement import Arrangement
from haulier.planner.placing.cluster import GIB, Cluster, Guest, Host, Rule, RuleKind, StorageRoom
from haulier.planner.placing.fitting import breaks_by_itself, unfit
from haulier.planner.placing.rebalance import GainfulMove, Rebalancing, least_balance, price, rebalance, settled
from tests.unit.planner.clusters import inhabited
from tests.unit.planner.test_placing import left_by_others

MOVES = st.integers(1, 5)


def applied(cluster: Cluster, found: Rebalancing) -> Cluster:
    """The same with the guests where they were moved to."""
    targets = {move.guest: move.target for move in found.moves}
    guests = tuple(replace(guest, host=targets.get(guest.name, guest.host)) for guest in cluster.guests)
    return replace(cluster, guests=guests)


def replayed(now: Arrangement, found: Rebalancing) -> Iterator[tuple[Arrangement, GainfulMove]]:
    """Before each move, with the move; in the end all are made."""
    guests = {guest.name: guest for guest in now.cluster.guests}
    for move in found.moves:
        yield now, move
        now.take(guests[move.guest])
        now.put(guests[move.guest], move.target)


def broken(rule: Rule, hosts: dict[str, str]) -> int:
    """How often, counted by nothing that the planner counts with."""
    there = Counter(hosts[name] for name in rule.guests if name in hosts)
    match rule.kind:
        case RuleKind.APART:
            return sum(there.values()) - len(there)
        case RuleKind.TOGETHER:
            return max(len(there) - 1, 0)
        case _:
            return sum(number for host, number in there.items() if breaks_by_itself(rule, host))


@given(inhabited(), MOVES)
@settings(max_examples=60)
def test_nothing_is_overfull_though_nobody_has_left_yet(cluster: Cluster, most: int) -> None:
    found = rebalance(cluster, most=most)
    guests = {guest.name: guest for guest in cluster.guests}
    assert len(found.moves) <= most
    assert len({move.guest for move in found.moves}) == len(found.moves)
    for name in {move.target for move in found.moves}:
        host = cluster.by_name[name]
        arrive = [guests[move.guest] for move in found.moves if move.target == name]
        here = [guest for guest in cluster.guests if guest.host == name]
        if running := [guest for guest in arrive if guest.runs]:
            both = [*running, *(guest for guest in here if guest.runs)]
            assert host.ram_taken_bytes + sum(guest.ram_bytes for guest in both) <= host.ram_bytes
            assert host.cpus_taken + sum(guest.cpus for guest in both) <= host.cpus
        needs = sum(guest.storages.get("local", 0) for guest in arrive if name not in guest.near)
        assert needs <= host.storages["local"].free_bytes
        assert all(unfit(guest, host, cluster.rules_of.get(guest.name, ())) is None for guest in arrive)


@given(inhabited(), MOVES)
@settings(max_examples=60)
def test_no_hard_rule_is_broken_more_often_in_any_order(cluster: Cluster, most: int) -> None:
    found, hard = rebalance(cluster, most=most), [rule for rule in cluster.rules if rule.hard]
    for moves in (found.moves, found.moves[::-1]):
        hosts = {guest.name: guest.host for guest in (*cluster.guests, *cluster.staying)}
        first = [broken(rule, hosts) for rule in hard]
        for move in moves:
            hosts[move.guest] = move.target
            assert all(now <= then for then, now in zip(first, (broken(rule, hosts) for rule in hard), strict=True))


@given(inhabited(), MOVES)
@settings(max_examples=60)
def test_no_move_goes_where_one_is_still_that_it_must_be_apart_from(cluster: Cluster, most: int) -> None:
    apart = [rule for rule in cluster.rules if rule.hard and rule.kind is RuleKind.APART]
    for move in rebalance(cluster, most=most).moves:
        for rule in (rule for rule in apart if move.guest in rule.guests):
            assert move.target not in left_by_others(rule, cluster)


@given(inhabited(), MOVES)
@settings(max_examples=60)
def test_price_falls_with_every_move_and_the_gains_add_up(cluster: Cluster, most: int) -> None:
    found, now = rebalance(cluster, most=most), settled(cluster)
    first, least = now.balance(), least_balance(now)
    prices = [price(now) for _ in replayed(now, found)]
    assert all(after < before for before, after in pairwise([*prices, price(now)]))
    assert least <= now.balance() * (1 + 1e-9)
    if first - least > 1e-6:
        left = (now.balance() - least) / (first - least)
        assert 1 - sum(move.gain for move in found.moves) == pytest.approx(left, abs=1e-6)
        assert found.left == pytest.approx(max(left, 0), abs=1e-6)


@given(inhabited())
@settings(max_examples=60)
def test_each_move_is_the_best_single_one(cluster: Cluster) -> None:
    found, now = rebalance(cluster, most=3), settled(cluster)
    moved, givers, takers = set[str](), set[str](), set[str]()

    def best() -> float:
        free = (guest for guest in now.cluster.guests if guest.name not in moved)
        guests = [guest for guest in free if guest.host not in takers or is_against(now, guest)]
        return max((gain for guest in guests for gain in gains(now, guest, givers)), default=0.0)

    expected, prices = list[float](), list[float]()
    for _, move in replayed(now, found):
        expected.append(best())
        prices.append(price(now))
        moved.add(move.guest)
        givers.add(move.source)
        takers.add(move.target)
    gained = [before - after for before, after in pairwise([*prices, price(now)])]
    assert gained == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert len(found.moves) == 3 or not best()


def is_against(now: Arrangement, guest: Guest) -> bool:
    """Whether a rule would be broken less often without it."""
    times = sum(now.times_broken(rule) for rule in now.cluster.rules)
    now.take(guest)
    without = sum(now.times_broken(rule) for rule in now.cluster.rules)
    now.put(guest, guest.host)
    return without < times


def gains(now: Arrangement, guest: Guest, givers: set[str]) -> Iterator[float]:
    """What each move of a guest that pays would gain, counted as a whole."""
    cluster, before = now.cluster, price(now)
    level = sum(now.ram_taken(host.name) for host in cluster.hosts) / cluster.ram_bytes
    worth = 2 * module._WORTH * level * now.balance_scale * (guest.ram_bytes if guest.runs else 0)
    for host in cluster.hosts:
        rules = [now.times_broken(rule) for rule in cluster.rules]
        now.take(guest)
        if host.name != guest.host and host.name not in givers and now.problem(guest, host) is None:
            now.put(guest, host.name)
            gain = before - price(now)
            mended = sum(now.times_broken(rule) for rule in cluster.rules) < sum(rules)
            now.take(guest)
            if gain > 1e-9 and (mended or gain >= worth * (1 + 1e-9)):
                yield gain
        now.put(guest, guest.host)


@given(inhabited(), MOVES, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_same_cluster_gets_same_moves(cluster: Cluster, most: int, random: object) -> None:
    first = rebalance(cluster, most=most)
    assert rebalance(cluster, most=most) == first
    mixed = list(cluster.guests)
    random.shuffle(mixed)  # type: ignore[attr-defined]  # hypothesis names no type
    again = rebalance(replace(cluster, guests=tuple(mixed)), most=most)
    assert [(move.guest, move.target) for move in again.moves] == [(move.guest, move.target) for move in first.moves]


@given(inhabited())
@settings(max_examples=30)
def test_asked_again_and_again_it_comes_to_an_end(cluster: Cluster) -> None:
    last = price(settled(cluster))
    for _ in range(100):
        found = rebalance(cluster, most=2)
        if not found.moves:
            return
        cluster = applied(cluster, found)
        now = price(settled(cluster))
        assert now < last
        last = now
    raise AssertionError("it moves for ever")


@pytest.mark.parametrize("seed", range(1, 6))
def test_second_plan_gains_less_than_the_first(seed: int) -> None:
    cluster = uneven(guests=60, hosts=8, fill=0.6, seed=seed)
    gained = []
    for _ in range(3):
        before, found = price(settled(cluster)), rebalance(cluster, most=3)
        cluster = applied(cluster, found)
        gained.append(before - price(settled(cluster)))
    assert gained[0] > gained[1] >= gained[2] >= 0
    assert len(rebalance(cluster, most=50).moves) < 50


def test_large_cluster_has_its_fullest_and_emptiest_hosts_mended_first() -> None:
    """A move there is a small part of all that could be evened out, and pays."""
    cluster = uneven(guests=1000, hosts=100, fill=0.7, seed=1)
    found = rebalance(cluster, most=5)
    taken = Counter[str]()
    for guest in cluster.guests:
        taken[guest.host] += guest.ram_bytes
    full = sorted(taken[host.name] / host.ram_bytes for host in cluster.hosts)
    assert len(found.moves) == 5
    for move in found.moves:
        assert taken[move.source] / cluster.by_name[move.source].ram_bytes >= full[-20]
        assert taken[move.target] / cluster.by_name[move.target].ram_bytes <= full[20]
    assert 0.5 < found.left < 1


def four(*sizes: int, host: str = "a", **more: object) -> tuple[Guest, ...]:
    return tuple(Guest(f"{host}{number}", host, size * GIB, **more) for number, size in enumerate(sizes))  # type: ignore[arg-type]  # whatever a guest has


TWO = (Host("a", 20 * GIB), Host("b", 20 * GIB))


def test_move_says_what_it_does_in_numbers() -> None:
    (move,) = rebalance(Cluster(TWO, four(4, 4, 4, 4)), most=1).moves
    assert move.reason == "RAM of a 80% → 60%, of b 0% → 20%"
    assert move.gain == pytest.approx(0.75)
    assert (move.source, move.target, move.mends) == ("a", "b", ())


def test_small_changes_are_told_too() -> None:
    hosts = (Host("a", 400 * GIB), Host("b", 400 * GIB))
    first, _ = rebalance(Cluster(hosts, four(1, 1, 1, 1)), most=5).moves
    assert first.reason == "RAM of a 1.0% → 0.8%, of b 0.0% → 0.2%"


def test_nothing_moves_for_next_to_nothing() -> None:
    """It would be the fuller one then; or the one is hardly fuller; or much has to cross for it."""
    even = (*four(1, 9), *four(9, host="b"))
    assert rebalance(Cluster(TWO, even), most=5).moves == ()
    nearly = (*four(*[1] * 50), *four(*[1] * 46, host="b"))
    large = (Host("a", 100 * GIB), Host("b", 100 * GIB))
    assert rebalance(Cluster(large, nearly), most=5).moves == ()
    assert rebalance(Cluster(large, nearly[:-4]), most=5).moves
    room = {"local": StorageRoom()}
    disks = Cluster(tuple(replace(host, storages=room) for host in TWO), four(2, 2, 2, 2, storages={"local": 1 << 42}))
    assert rebalance(disks, most=5).moves == ()


def test_emptiest_host_that_will_not_do_is_no_reason_to_move() -> None:
    hosts = (Host("a", 20 * GIB), Host("b", 19 * GIB), Host("c", 20 * GIB))
    guests = tuple(replace(guest, avoids={"c": Problem("failed", "it failed")}) for guest in four(1, 1, 10))
    assert rebalance(Cluster(hosts, (*guests, *four(10, host="b"))), most=5).moves == ()


def test_small_disk_goes_rather_than_a_large_one() -> None:
    hosts = tuple(replace(host, storages={"local": StorageRoom()}) for host in TWO)
    guests = [replace(guest, storages={"local": 500 * GIB}) for guest in four(4, 4, 4, 4)]
    guests[2] = replace(guests[2], storages={"local": 5 * GIB})
    (move,) = rebalance(Cluster(hosts, tuple(guests)), most=1).moves
    assert move.guest == "a2"


def test_broken_hard_rule_comes_first_then_a_wish() -> None:
    hosts = (*TWO, Host("c", 20 * GIB))
    guests = (*four(4, 4, 4, 4), *four(1, 1, host="b"), *four(1, 1, host="c"))
    hard = Rule("pair", RuleKind.APART, frozenset(("b0", "b1")))
    wish = Rule("wish", RuleKind.APART, frozenset(("c0", "c1")), hard=False)
    found = rebalance(Cluster(hosts, guests, rules=(wish, hard)), most=1)
    assert (found.moves[0].mends, found.broken) == (("pair",), ("wish",))
    assert found.moves[0].reason.startswith("mends rule pair; RAM of b ")
    both = rebalance(Cluster(hosts, guests, rules=(wish, hard)), most=2)
    assert [move.mends for move in both.moves] == [("pair",), ("wish",)]


def test_wish_that_a_rule_has_broken_is_mended_next() -> None:
    """The one may go to b only, and whom it should not meet there goes on."""
    must = Rule("must", RuleKind.ONLY_ON, frozenset(("a0",)), frozenset("b"))
    wish = Rule("wish", RuleKind.APART, frozenset(("a0", "b0")), hard=False)
    guests = (*four(1), *four(1, host="b"))
    found = rebalance(Cluster((*TWO, Host("c", 20 * GIB)), guests, rules=(must, wish)), most=5)
    assert [(move.guest, move.target, move.mends) for move in found.moves] == [
        ("a0", "b", ("must",)), ("b0", "c", ("wish",))
    ]  # fmt: skip


def test_rule_is_mended_at_the_price_of_balance_and_says_so() -> None:
    only = Rule("licence", RuleKind.ONLY_ON, frozenset(("a0",)), frozenset("b"))
    guests = (*four(4, 4), *four(4, 4, host="b"))
    (move,) = rebalance(Cluster((*TWO, Host("c", 20 * GIB)), guests, rules=(only,)), most=1).moves
    assert (move.guest, move.target, move.mends) == ("a0", "b", ("licence",))
    assert move.gain < 0


def test_group_that_is_split_comes_together_and_one_that_is_not_stays() -> None:
    group = Rule("group", RuleKind.TOGETHER, frozenset(("a0", "a1", "a2")))
    whole = rebalance(Cluster(TWO, four(4, 4, 4), rules=(group,)), most=5)
    assert (whole.moves, whole.broken) == ((), ())
    guests = (*four(1, 1), replace(four(4, 4, 4)[2], host="b"))
    (move,) = rebalance(Cluster(TWO, guests, rules=(group,)), most=5).moves
    assert (move.target, move.mends) == ("a", ("group",))


def test_closed_host_gives_and_does_not_take() -> None:
    closed = Problem("node_in_maintenance", "it is in maintenance")
    there = (replace(TWO[0], closed=closed), TWO[1])
    assert rebalance(Cluster(there, four(4, 4, 4)), most=1).moves[0].target == "b"
    assert rebalance(Cluster(there, four(4, 4, 4, host="b")), most=1).moves == ()


def test_empty_closed_host_is_no_imbalance_that_can_be_removed() -> None:
    closed = Host("c", 20 * GIB, closed=Problem("node_in_maintenance", "it is in maintenance"))
    (move,) = rebalance(Cluster((*TWO, closed), four(4, 4)), most=5).moves
    assert move.gain == pytest.approx(1.0)


def test_guest_goes_where_it_was_not_refused() -> None:
    hosts = (*TWO, Host("c", 20 * GIB, ram_taken_bytes=4 * GIB))
    guests = tuple(replace(guest, avoids={"b": Problem("failed", "it failed")}) for guest in four(4, 4, 4, 4))
    assert {move.target for move in rebalance(Cluster(hosts, guests), most=1).moves} == {"c"}


def test_host_that_gives_takes_nobody_in_the_same_plan() -> None:
    """Its room is not free before the other one has left: the pair can be parted only in the next plan."""
    hosts = (Host("a", 10 * GIB), Host("b", 10 * GIB), Host("c", 40 * GIB))
    pair = Rule("pair", RuleKind.APART, frozenset(("b0", "b1")))
    here = Rule("here", RuleKind.ONLY_ON, frozenset(("b0", "b1")), frozenset(("a", "b")))
    away = Rule("away", RuleKind.NOT_ON, frozenset(("a0", "a1")), frozenset("a"))
    cluster = Cluster(hosts, (*four(5, 5), *four(5, 5, host="b")), rules=(away, here, pair))
    first = rebalance(cluster, most=100)
    assert [(move.guest, move.target) for move in first.moves] == [("a0", "c"), ("a1", "c")]
    assert first.broken == ("pair",)
    second = rebalance(applied(cluster, first), most=100)
    assert [(move.guest, move.target) for move in second.moves] == [("b0", "a")]


def test_where_there_is_nothing_there_is_nothing_to_do() -> None:
    assert rebalance(Cluster((), ()), most=5) == Rebalancing((), (), 0.0, ())
    assert rebalance(Cluster(TWO, ()), most=5).moves == ()


def test_search_ends_where_no_place_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = uneven(guests=60, hosts=8, fill=0.6, seed=1)
    monkeypatch.setattr(module, "_LOOKS", 0)
    assert rebalance(cluster, most=5).moves == ()
