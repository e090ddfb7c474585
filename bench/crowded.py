"""Clusters that are hard to place in, for the benchmark of placing: the same for the same seed."""

from __future__ import annotations

from random import Random

from haulier.planner.placing.cluster import GIB, Cluster, Guest, Host, Rule, RuleKind, StorageRoom

_RAM_GIB = (1, 2, 2, 4, 4, 8, 8, 16, 32)
_CPUS = (1, 2, 4, 8)
_DISK_GIB = (10, 20, 50, 100, 200)
_MACHINES = ("pc-q35-7.2", "pc-q35-8.2", "pc-q35-9.2", "pc-q35-10.0")


def crowded(*, guests: int, hosts: int, fill: float, seed: int) -> Cluster:
    """So many guests of a node that is to be emptied, for hosts whose free RAM they fill to this part."""
    draw = Random(seed)  # noqa: S311
    ram = [draw.choice(_RAM_GIB) for _ in range(guests)]
    sizes, taken = [draw.choice((1, 2, 2, 4)) for _ in range(hosts)], [draw.uniform(0.2, 0.6) for _ in range(hosts)]
    free = sum(size * (1 - used) for size, used in zip(sizes, taken, strict=True))
    unit = sum(ram) / fill / free
    targets = tuple(
        Host(
            f"h{number:03}",
            ram_bytes=round(size * unit) * GIB,
            ram_taken_bytes=round(size * unit * used) * GIB,
            cpus=max(32, round(size * unit)),
            storages={"local": StorageRoom(draw.choice((1000, 2000)) * GIB)},
            machines=frozenset(machine for machine in _MACHINES if draw.random() < 0.8),
        )
        for number, (size, used) in enumerate(zip(sizes, taken, strict=True))
    )
    movers = tuple(
        Guest(
            f"g{number:04}",
            "leaving",
            ram_bytes=size * GIB,
            cpus=draw.choice(_CPUS),
            storages={"local": draw.choice(_DISK_GIB) * GIB},
            machine=draw.choice(_MACHINES),
        )
        for number, size in enumerate(ram)
    )
    pairs = tuple(
        Rule(f"pair{number}", RuleKind.APART, frozenset((f"g{number * 2:04}", f"g{number * 2 + 1:04}")))
        for number in range(guests // 20)
    )
    return Cluster(targets, movers, rules=pairs)


def uneven(*, guests: int, hosts: int, fill: float, seed: int) -> Cluster:
    """So many guests on hosts of mixed sizes, at random, so that one host is half full and another full: all in all to
    this part, as after years in which everybody has put his VMs where he found room.
    """
    draw = Random(seed)  # noqa: S311
    names = [f"h{number:04}" for number in range(hosts)]
    weights = [draw.choice((1, 2, 2, 4)) for _ in names]
    favour = [weight * draw.uniform(0.3, 1.0) for weight in weights]
    ram = [draw.choice(_RAM_GIB) for _ in range(guests)]
    unit = sum(ram) / fill / sum(weights)
    room = dict(zip(names, (round(weight * unit) for weight in weights), strict=True))
    left = dict(room)
    movers = list[Guest]()
    for number, size in enumerate(ram):
        home = draw.choices(names, favour)[0]
        if left[home] < size:
            home = max(names, key=lambda name: left[name])
        left[home] -= size
        disk = {"local": draw.choice(_DISK_GIB) * GIB}
        machine = draw.choice(_MACHINES)
        movers.append(Guest(f"g{number:05}", home, size * GIB, draw.choice(_CPUS), storages=disk, machine=machine))
    sources = tuple(
        Host(
            name,
            ram_bytes=size * GIB,
            cpus=max(32, size * 2),
            storages={"local": StorageRoom(draw.choice((1000, 2000)) * GIB)},
            machines=frozenset(machine for machine in _MACHINES if draw.random() < 0.8),
        )
        for name, size in room.items()
    )
    pairs = tuple(
        Rule(f"pair{number}", RuleKind.APART, frozenset((f"g{number * 2:05}", f"g{number * 2 + 1:05}")))
        for number in range(guests // 20)
    )
    return Cluster(sources, tuple(movers), rules=pairs)
