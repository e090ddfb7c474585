"""Small clusters of every kind, for properties of the planner."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from haulier.errors import Problem
from haulier.planner.placing.cluster import GIB, Cluster, Guest, Host, Rule, RuleKind, StorageRoom

HOSTS = ("a", "b", "c", "d")
NAMES = tuple(f"g{number}" for number in range(8))


@st.composite
def hosts(draw: st.DrawFn, name: str) -> Host:
    ram = draw(st.integers(0, 16))
    return Host(
        name,
        ram_bytes=ram * GIB,
        ram_taken_bytes=draw(st.integers(0, ram)) * GIB,
        cpus=draw(st.integers(0, 8)),
        storages={
            name: StorageRoom(draw(st.integers(0, 40)) * GIB, shared=draw(st.booleans()))
            for name in draw(st.sets(st.sampled_from(("local", "fast"))))
        },
        accel=draw(st.sampled_from(("kvm", "tcg", None))),
        bridges=draw(st.none() | st.sets(st.sampled_from(("br0", "br1"))).map(frozenset)),
        closed=draw(st.sampled_from((None, None, None, Problem("closed", "closed")))),
    )


@st.composite
def guests(draw: st.DrawFn, name: str) -> Guest:
    return Guest(
        name,
        draw(st.sampled_from(("away", *HOSTS))),
        ram_bytes=draw(st.integers(1, 8)) * GIB,
        cpus=draw(st.integers(1, 3)),
        runs=draw(st.booleans()),
        storages={
            name: draw(st.integers(0, 16)) * GIB
            for name in draw(st.sets(st.sampled_from(("local", "fast")), max_size=1))
        },
        accel=draw(st.sampled_from(("kvm", None))),
        bridges=draw(st.sets(st.sampled_from(("br0",))).map(frozenset)),
        near=draw(st.sets(st.sampled_from(HOSTS), max_size=1).map(frozenset)),
        avoids=dict.fromkeys(draw(st.sets(st.sampled_from(HOSTS), max_size=1)), Problem("failed", "it failed there")),
    )


@st.composite
def rules(draw: st.DrawFn, name: str) -> Rule:
    return Rule(
        name,
        draw(st.sampled_from(RuleKind)),
        draw(st.sets(st.sampled_from(NAMES), min_size=2, max_size=4).map(frozenset)),
        draw(st.sets(st.sampled_from(HOSTS), min_size=1).map(frozenset)),
        hard=draw(st.booleans()),
    )


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    there = [draw(guests(name)) for name in NAMES[: draw(st.integers(1, len(NAMES)))]]
    moving = draw(st.integers(1, len(there)))
    # Those that stay are somewhere, and count as taken where they are; some are still elsewhere.
    leaving = st.sampled_from((None, *HOSTS))
    staying = [replace(guest, leaving=draw(leaving), is_held=draw(st.booleans())) for guest in there[moving:]]
    return Cluster(
        tuple(draw(hosts(name)) for name in HOSTS[: draw(st.integers(1, len(HOSTS)))]),
        tuple(there[:moving]),
        tuple(staying),
        tuple(draw(rules(f"r{number}")) for number in range(draw(st.integers(0, 3)))),
    )


@st.composite
def inhabited(draw: st.DrawFn) -> Cluster:
    """Guests that have their places, some on hosts that are overfull or against a rule, and with ways to others."""
    homes = HOSTS[: draw(st.integers(2, len(HOSTS)))]
    there = [
        replace(
            draw(hosts(name)),
            ram_bytes=draw(st.integers(1, 32)) * GIB,
            ram_taken_bytes=draw(st.integers(0, 4)) * GIB,
            cpus=draw(st.integers(2, 32)),
            storages={"local": StorageRoom(draw(st.integers(0, 60)) * GIB), "fast": StorageRoom(shared=True)},
        )
        for name in homes
    ]
    placed = [replace(draw(guests(name)), host=draw(st.sampled_from(homes))) for name in NAMES]
    moving = draw(st.integers(1, len(placed)))
    staying = [replace(guest, leaving=draw(st.sampled_from((None, *homes)))) for guest in placed[moving:]]
    some = tuple(draw(rules(f"r{number}")) for number in range(draw(st.integers(0, 3))))
    return Cluster(tuple(there), tuple(placed[:moving]), tuple(staying), some)
