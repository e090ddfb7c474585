"""A start that is found at once and always the same: the hardest guest first, each where it costs least. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from haulier.planner.placing.arrangement import Arrangement
from haulier.planner.placing.cluster import Cluster, Guest, Host, RuleKind


def arrange(cluster: Cluster) -> Arrangement:
    """Every guest gets a place, or there was none left for it. Guests that must be together go as one."""
    found = Arrangement(cluster)
    for unit in _hardest_first(found):
        _place(found, unit)
    return found


def _hardest_first(arrangement: Arrangement) -> list[tuple[Guest, ...]]:
    """The fewer hosts would take it and the larger it is, the earlier."""
    hosts = arrangement.cluster.hosts

    def key(unit: tuple[Guest, ...]) -> tuple[bool, int, str]:
        choices = sum(all(arrangement.never(guest, host) is None for guest in unit) for host in hosts)
        ram = sum(guest.ram_bytes for guest in unit if guest.runs)
        # Where only a few will do, nobody else may take them; among the others size is what is hard.
        return choices * 4 > len(hosts), -ram, unit[0].name

    return sorted(units(arrangement.cluster), key=key)


def units(cluster: Cluster) -> list[tuple[Guest, ...]]:
    """The guests to be placed, those in one that must be together."""
    unit_of = {guest.name: frozenset([guest.name]) for guest in cluster.guests}
    for rule in cluster.rules:
        if rule.hard and rule.kind is RuleKind.TOGETHER:
            members = [name for name in rule.guests if name in unit_of]
            whole = frozenset().union(*(unit_of[name] for name in members))
            unit_of |= dict.fromkeys(whole, whole)
    guests = {guest.name: guest for guest in cluster.guests}
    seen = dict.fromkeys(unit_of[guest.name] for guest in cluster.guests)
    return [tuple(guests[name] for name in sorted(unit)) for unit in seen]


def _place(arrangement: Arrangement, unit: Sequence[Guest]) -> None:
    best: tuple[float, str] | None = None
    for host in arrangement.cluster.hosts:
        cost = _cost_there(arrangement, unit, host)
        if cost is not None and (best is None or (cost, host.name) < best):
            best = cost, host.name
    if best is not None:
        for guest in unit:
            arrangement.put(guest, best[1])


def _cost_there(arrangement: Arrangement, unit: Sequence[Guest], host: Host) -> float | None:
    """What all of them cost on a host, None if they cannot be there."""
    cost, put = 0.0, list[Guest]()
    for guest in unit:
        if arrangement.problem(guest, host) is not None:
            break
        cost += arrangement.marginal(guest, host)
        if len(unit) > 1:
            arrangement.put(guest, host.name)
            put.append(guest)
    else:
        put_back(arrangement, put)
        return cost
    put_back(arrangement, put)
    return None


def put_back(arrangement: Arrangement, guests: Sequence[Guest]) -> None:
    """Take the places of these away again."""
    for guest in guests:
        arrangement.take(guest)
