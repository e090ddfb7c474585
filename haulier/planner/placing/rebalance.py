"""Few moves that mend rules and make hosts more equally full, each the best single one after those before. Pure.

A host that gives takes nobody, not even into the room that becomes free: so the moves may be made in any order, or all
at one moment, and nothing is overfull in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

from haulier.planner.placing.arrangement import WISH, Arrangement, full_byte
from haulier.planner.placing.cluster import Cluster, Guest, Host, Rule
from haulier.planner.placing.loads import Load, loads
from haulier.planner.placing.plan import Move

# A hard rule that is broken is worth more than any wish, and any balance.
_BREACH = 1_000_000.0
# A byte that crosses costs so much of what it would cost in a host that is full: with disks ten times as large as its
# RAM a guest has to go where it is emptier by half a hundredth, and by five with a hundred times. Not of all bytes
# there are, as when a node is emptied: these must cross, wherever to, and here they would not.
_BYTE = 0.001
# On its way, before and after, a guest's host must be fuller than its target by so much of how full all are, on the
# average. What is asked for is not a part of all that could be evened out: of that no move is a noticeable part in a
# large cluster, and any move is in one that is nearly even.
_WORTH = 0.1
# So many places are looked at for each move: where all are full, nobody waits for it.
_LOOKS = 20_000
# Sizes of guests that differ by less than an eighth are taken for one when targets are brought into an order.
_BITS = 4
# Beyond this a level is known well enough.
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class GainfulMove(Move):
    """One that pays. `gain` is the part of the imbalance that can be removed at all which it takes away: at most 1, and
    below 0 for one that `mends` rules (by their names) at the price of balance.
    """

    source: str
    gain: float
    mends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rebalancing:
    """The moves in the order in which they were found, and the loads of the hosts that they touch. `left` is the part
    of the imbalance that stays, of what can be removed; `broken` are the rules that stay broken.
    """

    moves: tuple[GainfulMove, ...]
    loads: tuple[Load, ...]
    left: float
    broken: tuple[str, ...]


def rebalance(cluster: Cluster, *, most: int) -> Rebalancing:
    """Find at most so many moves of the guests, which now are on their `host`. The same cluster gets the same ones."""
    descent = _Descent(settled(cluster))
    moves = list[GainfulMove]()
    while len(moves) < most and (way := descent.best()) is not None:
        moves.append(descent.go(way))
    touched = {name for move in moves for name in (move.source, move.target)}
    return Rebalancing(
        tuple(moves),
        tuple(load for load in loads(descent.now) if load.host in touched),
        max(1.0 - sum(move.gain for move in moves), 0.0) if descent.removable else 0.0,
        tuple(rule.name for rule in cluster.rules if descent.now.times_broken(rule)),
    )


def settled(cluster: Cluster) -> Arrangement:
    """All guests where they are: what they have there needs no more room, and does not cross."""
    guests = tuple(replace(guest, near=guest.near | {guest.host}) for guest in cluster.guests)
    now = Arrangement(replace(cluster, guests=guests), byte_price=_BYTE * full_byte(cluster))
    for guest in guests:
        now.put(guest, guest.host)
    return now


def price(arrangement: Arrangement) -> float:
    """What is lower after every move: hard rules that are broken, then all that an arrangement costs."""
    breaches = sum(arrangement.times_broken(rule) for rule in arrangement.cluster.rules if rule.hard)
    return _BREACH * breaches + arrangement.cost()


def least_balance(now: Arrangement) -> float:
    """What the balance cannot be below, wherever the guests go: RAM finds one level in all hosts, but that a closed one
    gets no more than it has.
    """
    hosts = now.cluster.hosts
    total = sum(now.ram_taken(host.name) for host in hosts)
    low, high = 0.0, max((now.ram_taken(host.name) / max(host.ram_bytes, 1) for host in hosts), default=0.0)
    for _ in range(_HALVINGS):
        level = (low + high) / 2
        low, high = (level, high) if sum(_filled(now, level)) <= total else (low, level)
    parts = zip(hosts, _filled(now, low), strict=True)
    return now.balance_scale * sum(taken**2 / max(host.ram_bytes, 1) for host, taken in parts)


def _filled(now: Arrangement, level: float) -> Iterator[float]:
    for host in now.cluster.hosts:
        wanted = max(level * host.ram_bytes, float(host.ram_taken_bytes))
        yield wanted if host.closed is None else min(wanted, float(now.ram_taken(host.name)))


@dataclass(frozen=True, slots=True)
class _Way:
    """A guest and its target, by what the price falls with it, and the rules that it mends."""

    guest: Guest
    host: Host
    gain: float
    mends: tuple[Rule, ...]


class _Targets:
    """The hosts that may take guests before the next move. All costs are for each byte of a guest's RAM."""

    def __init__(self, now: Arrangement, hosts: Sequence[Host]) -> None:
        self._now = now
        self._hosts = [(2 * now.ram_taken(host.name) / max(host.ram_bytes, 1), host) for host in hosts]
        self._emptiest = min((each[0] for each in self._hosts), default=inf)
        self._largest = max((host.ram_bytes for host in hosts), default=0)
        self._ordered: dict[tuple[int, int | None], list[tuple[float, Host]]] = {}

    def least(self, ram: int) -> float:
        """What a guest of so much RAM costs at least, wherever it goes."""
        return self._emptiest + ram / max(self._largest, 1)

    def of(self, guest: Guest) -> Sequence[tuple[float, Host]]:
        """Where it may run, each with what it costs there at least, the cheapest first."""
        ram = _rounded(_ram(guest))
        key = (ram, self._now.kind(guest))
        if key not in self._ordered:
            fit = [each for each in self._all(ram) if self._now.never(guest, each[1]) is None]
            self._ordered[key] = fit
        return self._ordered[key]

    def _all(self, ram: int) -> Sequence[tuple[float, Host]]:
        if (ram, None) not in self._ordered:
            costs = [(cost + ram / max(host.ram_bytes, 1), host) for cost, host in self._hosts]
            self._ordered[ram, None] = sorted(costs, key=lambda each: (each[0], each[1].name))
        return self._ordered[ram, None]


def _rounded(ram: int) -> int:
    """A little less, so that few sizes are told apart."""
    shift = max(ram.bit_length() - _BITS, 0)
    return ram >> shift << shift


class _Descent:
    """Where all are after the moves so far. Who was moved is not moved again."""

    def __init__(self, now: Arrangement) -> None:
        self.now = now
        self.removable = max(now.balance() - least_balance(now), 0.0)
        taken = sum(now.ram_taken(host.name) for host in now.cluster.hosts)
        self._level = taken / max(now.cluster.ram_bytes, 1)
        self._scale = now.balance_scale
        self._moved, self._givers, self._takers = set[str](), set[str](), set[str]()
        self._relief: dict[str, float] = {}
        self._looks = 0

    def best(self) -> _Way | None:
        """The move after which the price is lowest, None if none pays. Looked for where most can be hoped for, and no
        further than something better can be.
        """
        open_ = (host for host in self.now.cluster.hosts if host.closed is None)
        targets = _Targets(self.now, [host for host in open_ if host.name not in self._givers])
        best, self._looks = None, _LOOKS
        for hope, guest in self._hopes(targets):
            if hope <= (best.gain if best is not None else 0.0) or self._looks <= 0:
                break
            best = self._best_of(guest, targets, best) or best
        return best

    def _hopes(self, targets: _Targets) -> Sequence[tuple[float, Guest]]:
        """Who could pay for a move, each with the most that it could gain, highest first."""
        found = list[tuple[float, Guest]]()
        for guest in self.now.cluster.guests:
            if guest.name in self._moved:
                continue
            relief, ram = self._relief_of(guest), _ram(guest)
            if guest.host in self._takers and not relief:
                # Who came there could as well have gone where this one would go.
                continue
            hope = relief + self._scale * ram * (self._here(guest) - targets.least(ram))
            if hope > (0.0 if relief else self._worth(guest)):
                found.append((hope, guest))
        return sorted(found, key=lambda each: (-each[0], each[1].name))

    def _here(self, guest: Guest) -> float:
        """What a guest that has its place costs there, for each byte of its RAM."""
        host = self.now.cluster.by_name[guest.host]
        return (2 * self.now.ram_taken(host.name) - _ram(guest)) / max(host.ram_bytes, 1)

    def _worth(self, guest: Guest) -> float:
        """What a move of it has to gain if it mends nothing."""
        return 2 * _WORTH * self._level * self._scale * _ram(guest)

    def _relief_of(self, guest: Guest) -> float:
        """What the rules that it breaks where it is cost."""
        if guest.name not in self.now.cluster.rules_of:
            return 0.0
        if guest.name not in self._relief:
            self.now.take(guest)
            self._relief[guest.name] = _breaches(self._against(guest, guest.host))
            self.now.put(guest, guest.host)
        return self._relief[guest.name]

    def _against(self, guest: Guest, host: str) -> list[Rule]:
        """The rules that a guest without a place would break on this host."""
        return [rule for rule in self.now.cluster.rules_of.get(guest.name, ()) if self.now.broken_by(rule, host)]

    def _best_of(self, guest: Guest, targets: _Targets, best: _Way | None) -> _Way | None:
        """Its best target, None if it has none that pays and is better than the `best` so far."""
        self.now.take(guest)
        found = self._try(guest, targets, best)
        self.now.put(guest, guest.host)
        return found

    def _try(self, guest: Guest, targets: _Targets, best: _Way | None) -> _Way | None:
        now, found, ram = self.now, None, _ram(guest)
        here = self._against(guest, guest.host)
        before = now.burden(guest, now.cluster.by_name[guest.host]) + _breaches(here)
        # Where it has a replica, little has to cross.
        crossing = 0.0 if len(guest.near) > 1 else now.crossing(guest, "")
        for cost, host in targets.of(guest):
            above = best.gain if best is not None else 0.0
            if before - self._scale * ram * cost - crossing <= above or self._looks <= 0:
                break
            self._looks -= 1
            if host.name == guest.host or now.problem(guest, host) is not None:
                continue
            there, gain = self._against(guest, host.name), before - now.marginal(guest, host)
            if gain > above and (len(there) < len(here) or gain >= self._worth(guest)):
                best = found = _Way(guest, host, gain, tuple(rule for rule in here if rule not in there))
        return found

    def go(self, way: _Way) -> GainfulMove:
        """Make a move, and say what it gains."""
        now, guest = self.now, way.guest
        hosts = (now.cluster.by_name[guest.host], way.host)
        before = [self._fill(host) for host in hosts]
        now.take(guest)
        evened = now.burden(guest, hosts[0]) - now.burden(guest, hosts[1])
        now.put(guest, way.host.name)
        self._remember(way)
        words = [f"mends rule {rule.name}" for rule in way.mends]
        if guest.runs:
            changes = [_change(old, self._fill(host)) for old, host in zip(before, hosts, strict=True)]
            words.append(f"RAM of {hosts[0].name} {changes[0]}, of {hosts[1].name} {changes[1]}")
        gain = evened / self.removable if self.removable else 0.0
        rules = tuple(rule.name for rule in way.mends)
        return GainfulMove(guest.name, way.host.name, "; ".join(words), guest.host, gain, rules)

    def _remember(self, way: _Way) -> None:
        self._moved.add(way.guest.name)
        self._givers.add(way.guest.host)
        self._takers.add(way.host.name)
        for rule in self.now.cluster.rules_of.get(way.guest.name, ()):
            for name in rule.guests:
                self._relief.pop(name, None)

    def _fill(self, host: Host) -> float:
        return self.now.ram_taken(host.name) / max(host.ram_bytes, 1)


def _ram(guest: Guest) -> int:
    return guest.ram_bytes if guest.runs else 0


def _breaches(rules: Sequence[Rule]) -> float:
    return sum(_BREACH if rule.hard else WISH for rule in rules)


def _change(before: float, after: float) -> str:
    digits = 0 if f"{before:.0%}" != f"{after:.0%}" else 1
    return f"{before:.{digits}%} → {after:.{digits}%}"
