"""What hosts have to carry before moves and after them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from haulier.planner.placing.arrangement import Arrangement


@dataclass(frozen=True, slots=True)
class Load:
    """What a host's guests have of its RAM and CPUs, before the moves and after them. Infinite CPUs are not counted."""

    host: str
    ram_bytes: int
    ram_before_bytes: int
    ram_after_bytes: int
    cpus: float
    cpus_before: float
    cpus_after: float


def loads(arrangement: Arrangement) -> Iterator[Load]:
    """Of each host: before, all guests were where they say; after it, they have their places, or stay."""
    cluster = arrangement.cluster
    leaving = {host.name: (0, 0) for host in cluster.hosts}
    for guest in cluster.guests:
        if guest.runs and guest.host in leaving:
            ram, cpus = leaving[guest.host]
            leaving[guest.host] = ram + guest.ram_bytes, cpus + guest.cpus
    homeless = [guest for guest in arrangement.homeless if guest.runs]
    for host in cluster.hosts:
        ram, cpus = leaving[host.name]
        stays = [guest for guest in homeless if guest.host == host.name]
        yield Load(
            host.name,
            host.ram_bytes,
            host.ram_taken_bytes + ram,
            arrangement.ram_taken(host.name) + sum(guest.ram_bytes for guest in stays),
            0.0 if host.cpus == inf else host.cpus,
            host.cpus_taken + cpus,
            arrangement.cpus_taken(host.name) + sum(guest.cpus for guest in stays),
        )
