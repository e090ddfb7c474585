"""A better arrangement, by HiGHS: a few hosts at a time are cleared in thought and filled anew, exactly. Pure.

A whole cluster at once is too much for a solver in seconds; eight hosts with the guests that are to go there are solved
in some hundredths of one. Which hosts is drawn from a fixed seed, and each solve ends by itself or after a number of
nodes, so the same question gets the same answer on a slow machine too; only when `time_s` is over is it cut short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from haulier.planner.placing.arrangement import Arrangement
from haulier.planner.placing.cluster import Guest, Host
from haulier.planner.placing.greedy import units
from haulier.planner.placing.model import solve

_HOSTS_AT_ONCE = 8
_HOMELESS_AT_ONCE = 6
_GUESTS_AT_ONCE = 160
# So many in a row that found nothing end the search.
_FRUITLESS = 12
_ROUNDS = 60
# This near to what no arrangement can be below, nothing is searched.
_NEAR = 0.01


@dataclass(frozen=True, slots=True)
class Found:
    """The best arrangement that was found; `cut_short` if the time was over before the search was."""

    arrangement: Arrangement
    cut_short: bool = False


def improve(start: Arrangement, *, clock: Callable[[], float], time_s: float) -> Found:
    """Search on from a start. What is found never costs more. `clock` tells seconds."""
    best, cost, until = start.copy(), start.cost(), clock() + time_s
    draw, fruitless = Random(0), 0  # noqa: S311 - not a secret: the same each time
    for _ in range(_ROUNDS):
        if cost <= best.bound() * (1 + _NEAR) or fruitless == _FRUITLESS:
            break
        left_s = until - clock()
        if left_s <= 0:
            return Found(best, cut_short=True)
        part = _neighbourhood(best, draw)
        places = solve(best, part.guests, part.hosts, time_s=left_s)
        if places is None:
            return Found(best, cut_short=True)
        tried = _with(best, part.guests, places)
        if (now := tried.cost()) < cost * (1 - 1e-9):
            best, cost, fruitless = tried, now, 0
        else:
            fruitless += 1
        if part.is_all:
            break
    return Found(best)


@dataclass(frozen=True, slots=True)
class _Part:
    """What is solved at once; `is_all` if that is all there is to be decided."""

    hosts: list[Host]
    guests: list[Guest]
    is_all: bool


def _neighbourhood(arrangement: Arrangement, draw: Random) -> _Part:
    """Some guests without a place, some hosts that would take one of them, and who is to go to these."""
    cluster = arrangement.cluster
    homeless = [unit for unit in units(cluster) if unit[0].name not in arrangement.places]
    some = [guest for unit in draw.sample(homeless, min(len(homeless), _HOMELESS_AT_ONCE)) for guest in unit]
    wanted = some or cluster.guests
    fit = [host for host in cluster.hosts if any(arrangement.never(guest, host) is None for guest in wanted)]
    hosts, guests = list[Host](), list(some)
    for host in draw.sample(fit, min(len(fit), _HOSTS_AT_ONCE)):
        there = [guest for guest in cluster.guests if arrangement.places.get(guest.name) == host.name]
        if hosts and len(guests) + len(there) > _GUESTS_AT_ONCE:
            break
        hosts.append(host)
        guests += there
    return _Part(hosts, guests, len(guests) == len(cluster.guests) and len(hosts) == len(fit))


def _with(arrangement: Arrangement, guests: list[Guest], places: dict[str, str]) -> Arrangement:
    """The same, but for these guests. As it is, if one of them does not fit: a solver counts with a tolerance."""
    tried = arrangement.copy()
    for guest in guests:
        tried.take(guest)
    for guest in guests:
        if place := places.get(guest.name):
            if tried.problem(guest, arrangement.cluster.by_name[place]) is not None:
                return arrangement
            tried.put(guest, place)
    return tried
