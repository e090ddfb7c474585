"""Whether one more host may fail: its guests would be started again on the others. Pure."""

from __future__ import annotations

import heapq
from collections import defaultdict
from itertools import islice

from haulier.errors import Problem
from haulier.planner.placing.arrangement import Arrangement
from haulier.planner.placing.cluster import GIB, Cluster, Guest


def without_spare(arrangement: Arrangement) -> tuple[Problem, ...]:
    """The hosts whose guests would find no RAM on the others, each with the numbers; empty if any one may fail.

    Guests that are where they were count like those that were placed; where a guest may not go is not asked.
    """
    there = _guests_by_host(arrangement)
    open_hosts = [host for host in arrangement.cluster.hosts if host.closed is None]
    free = sorted(((host.ram_bytes - arrangement.ram_taken(host.name), host.name) for host in open_hosts), reverse=True)
    found = []
    for host in open_hosts:
        guests, others = there[host.name], (room for room, name in free if name != host.name)
        # Each guest goes into the largest room: no more of them are ever looked at than there are guests.
        left = _left_over(guests, list(islice(others, len(guests))))
        if left:
            words = (
                f"if {host.name} fails, {len(left)} of its {len(guests)} guests"
                f" ({sum(guest.ram_bytes for guest in left) / GIB:.1f} GiB) find no RAM on the others"
            )
            found.append(Problem("no_spare", words, "Add a node, or plan without --spare."))
    return tuple(found)


def _guests_by_host(arrangement: Arrangement) -> dict[str, list[Guest]]:
    cluster: Cluster = arrangement.cluster
    there: dict[str, list[Guest]] = defaultdict(list)
    for guest in cluster.staying:
        if guest.runs:
            there[guest.host].append(guest)
    for guest in cluster.guests:
        if guest.runs and (place := arrangement.places.get(guest.name)):
            there[place].append(guest)
    return there


def _left_over(guests: list[Guest], rooms: list[int]) -> list[Guest]:
    """The largest first, each into the largest room: those that find none."""
    left = [-room for room in rooms]
    heapq.heapify(left)
    homeless = []
    for guest in sorted(guests, key=lambda each: (-each.ram_bytes, each.name)):
        if not left or -left[0] < guest.ram_bytes:
            homeless.append(guest)
        else:
            heapq.heapreplace(left, left[0] + guest.ram_bytes)
    return homeless
