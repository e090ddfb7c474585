"""Who is where, what room is left by that, and what it costs: the one place that counts. Pure.

The cost is what a better arrangement has less of: guests without a place, broken wishes, hosts that are fuller than
others, bytes that cross.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from haulier.errors import Problem
from haulier.planner.placing.cluster import GIB, Cluster, Guest, Host, Rule, RuleKind
from haulier.planner.placing.fitting import breaks_by_itself, kind_of, unfit

# Of 1000, which all hosts cost when they are full.
_ALL_FULL = 1000.0
# A wish is worth more than any balance, and less than any guest's place.
WISH = 2 * _ALL_FULL
# So much if all that is to be moved crosses whole.
_ALL_CROSSES = 20.0


def full_byte(cluster: Cluster) -> float:
    """What a byte of RAM costs in a host that is full."""
    return _ALL_FULL / max(cluster.ram_bytes, 1)


def homeless_cost(guest: Guest) -> float:
    """What a guest without a place costs: one more counts most, then its size."""
    return 1_000_000.0 * (1 + guest.ram_bytes / GIB / 4096)


class Arrangement:
    """The places of a cluster's guests so far. `byte_price` is what a byte costs that crosses; where none is said, all
    bytes of the guests to be placed together have a fixed price.
    """

    def __init__(self, cluster: Cluster, *, byte_price: float | None = None) -> None:
        self.cluster = cluster
        self.byte_price = _ALL_CROSSES / max(cluster.bytes, 1) if byte_price is None else byte_price
        self.places: dict[str, str] = {}
        self._ram = {host.name: host.ram_taken_bytes for host in cluster.hosts}
        self._cpus = {host.name: host.cpus_taken for host in cluster.hosts}
        self._storage: dict[str, Counter[str]] = {host.name: Counter() for host in cluster.hosts}
        self._members: dict[str, Counter[str]] = {rule.name: Counter() for rule in cluster.rules}
        self._kinds: dict[str, int] = {}
        self._numbers: dict[Hashable, int] = {}
        self._unfit: dict[tuple[int, str], Problem | None] = {}
        for guest in cluster.staying_by_rule:
            self._count(guest, guest.host, 1)

    def copy(self) -> Arrangement:
        """Another one with the same places, which changes alone."""
        other = Arrangement(self.cluster, byte_price=self.byte_price)
        other._kinds, other._numbers, other._unfit = self._kinds, self._numbers, self._unfit
        for guest in self.cluster.guests:
            if place := self.places.get(guest.name):
                other.put(guest, place)
        return other

    def put(self, guest: Guest, host: str) -> None:
        """Give a guest a place, whether it fits or not."""
        self.places[guest.name] = host
        self._add(guest, host, 1)

    def take(self, guest: Guest) -> None:
        """Take its place away, if it has one."""
        if host := self.places.pop(guest.name, None):
            self._add(guest, host, -1)

    def _add(self, guest: Guest, host: str, sign: int) -> None:
        if guest.runs:
            self._ram[host] += sign * guest.ram_bytes
            self._cpus[host] += sign * guest.cpus
        for storage, size in guest.needs(host).items():
            self._storage[host][storage] += sign * size
        self._count(guest, host, sign)

    def _count(self, guest: Guest, host: str, sign: int) -> None:
        for rule in self.cluster.rules_of.get(guest.name, ()):
            self._members[rule.name][host] += sign

    def ram_taken(self, host: str) -> int:
        """In bytes, by all that are there or have their place there."""
        return self._ram[host]

    def cpus_taken(self, host: str) -> float:
        """The same of virtual CPUs."""
        return self._cpus[host]

    def storage_taken(self, host: str, storage: str) -> int:
        """The bytes that are to be written to a storage of it."""
        return self._storage[host][storage]

    def members(self, rule: Rule) -> dict[str, int]:
        """How many guests of a rule each host has."""
        return {host: number for host, number in self._members[rule.name].items() if number}

    def kind(self, guest: Guest) -> int:
        """Guests with the same number may run on the same hosts, as far as only a guest and a host are asked."""
        if guest.name not in self._kinds:
            kept_from = frozenset(self.cluster.kept_from.get(guest.name, {}).items())
            kind = kind_of(guest, self.cluster.rules_of.get(guest.name, ())), kept_from
            self._kinds[guest.name] = self._numbers.setdefault(kind, len(self._numbers))
        return self._kinds[guest.name]

    def never(self, guest: Guest, host: Host) -> Problem | None:
        """Why it may not run there, whoever else of those to be placed is there."""
        key = (self.kind(guest), host.name)
        if key not in self._unfit:
            problem = unfit(guest, host, self.cluster.rules_of.get(guest.name, ()))
            self._unfit[key] = problem or self.cluster.kept_from.get(guest.name, {}).get(host.name)
        return self._unfit[key]

    def problem(self, guest: Guest, host: Host) -> Problem | None:
        """Why a guest that has no place cannot have one there now, None if it can."""
        return self.never(guest, host) or self._full(guest, host) or self._against(guest, host)

    def _full(self, guest: Guest, host: Host) -> Problem | None:
        name = host.name
        if guest.runs and (free := host.ram_bytes - self._ram[name]) < guest.ram_bytes:
            words = f"{name} has {_gib(max(free, 0))} of RAM left, it needs {_gib(guest.ram_bytes)}"
            return Problem("no_ram", words, "Make room there, or add a node.")
        if guest.runs and (left := host.cpus - self._cpus[name]) < guest.cpus:
            words = f"{name} has {max(left, 0):g} virtual CPUs left, it needs {guest.cpus}"
            return Problem("no_cpus", words, "HAULIER_CPU_OVERCOMMIT, or add a node.")
        for storage, size in guest.needs(name).items():
            room = host.storages[storage]
            if not room.shared and (space := room.free_bytes - self._storage[name][storage]) < size:
                words = f"storage {storage} of {name} has {_gib(max(space, 0))} left, it needs {_gib(size)}"
                return Problem("no_space", words, "Make room there, or add a node.")
        return None

    def _against(self, guest: Guest, host: Host) -> Problem | None:
        for rule in self.cluster.rules_of.get(guest.name, ()):
            if rule.hard and self.broken_by(rule, host.name):
                words = f"rule {rule.name} ({rule.kind}) keeps it from {host.name}"
                return Problem("rule", words, f"haulier rule show {rule.name}")
        return None

    def broken_by(self, rule: Rule, host: str) -> bool:
        """Whether one more guest of the rule on this host would be against it, once more than it is without that."""
        there = self._members[rule.name]
        match rule.kind:
            case RuleKind.APART:
                return there[host] > 0
            case RuleKind.TOGETHER:
                return any(number for other, number in there.items() if other != host) and not there[host]
            case _:
                return breaks_by_itself(rule, host)

    def marginal(self, guest: Guest, host: Host) -> float:
        """What the cost would grow by with a guest that has no place there; its own homelessness is not counted."""
        wishes = sum(
            self.broken_by(rule, host.name) for rule in self.cluster.rules_of.get(guest.name, ()) if not rule.hard
        )
        return self.burden(guest, host) + WISH * wishes + self.crossing(guest, host.name)

    def burden(self, guest: Guest, host: Host) -> float:
        """The part of that which is the balance."""
        ram = guest.ram_bytes if guest.runs else 0
        return self.balance_scale * ram * (2 * self._ram[host.name] + ram) / max(host.ram_bytes, 1)

    def crossing(self, guest: Guest, host: str) -> float:
        """What the bytes of a guest cost that cross to a host."""
        return 0.0 if host in guest.near else self.byte_price * guest.bytes

    @property
    def homeless(self) -> list[Guest]:
        """The guests without a place."""
        return [guest for guest in self.cluster.guests if guest.name not in self.places]

    def broken_wishes(self) -> int:
        """How often a wish is not met: a guest too many on a host, a host too many for a group, a host that is not
        wished for.
        """
        return sum(self.times_broken(rule) for rule in self.cluster.rules if not rule.hard)

    def times_broken(self, rule: Rule) -> int:
        """The same of one rule, also of a hard one: guests that were there before may be against it."""
        there = self.members(rule)
        match rule.kind:
            case RuleKind.APART:
                return sum(number - 1 for number in there.values())
            case RuleKind.TOGETHER:
                return max(len(there) - 1, 0)
            case _:
                return sum(number for host, number in there.items() if breaks_by_itself(rule, host))

    def cost(self) -> float:
        """What this arrangement costs in all."""
        guests = self.cluster.guest_named
        return (
            sum(homeless_cost(guest) for guest in self.homeless)
            + WISH * self.broken_wishes()
            + sum(self.crossing(guests[name], host) for name, host in self.places.items())
            + self.balance()
        )

    def balance(self) -> float:
        """The part of it that is the RAM: the least where all hosts are equally full."""
        return self.balance_scale * sum(
            self._ram[host.name] ** 2 / max(host.ram_bytes, 1) for host in self.cluster.hosts
        )

    @property
    def balance_scale(self) -> float:
        """What a full byte of RAM costs."""
        return full_byte(self.cluster)

    def bound(self) -> float:
        """What no arrangement of these guests can be below: RAM is poured into the hosts like water, and all bytes that
        can be spared are.
        """
        hosts = [(host.ram_taken_bytes, max(host.ram_bytes, 1), host.closed is None) for host in self.cluster.hosts]
        fixed = sum(taken**2 / size for taken, size, is_open in hosts if not is_open)
        vessels = [(taken, size) for taken, size, is_open in hosts if is_open]
        wanted = sum(guest.ram_bytes for guest in self.cluster.guests if guest.runs)
        # One for whom there is no room costs more than all hosts together.
        room = sum(max(size - taken, 0) for taken, size in vessels)
        poured = pour(vessels, min(wanted, room)) if vessels else 0.0
        far = sum(guest.bytes for guest in self.cluster.guests if not guest.near)
        return self.balance_scale * (fixed + poured) + self.byte_price * far


def pour(vessels: Sequence[tuple[float, float]], amount: float) -> float:
    """The least sum of taken² / size with so much more in vessels of which each is (taken, size)."""
    rising = sorted(vessels, key=lambda each: each[0] / each[1])
    held, room, under = 0.0, 0.0, list[tuple[float, float]]()
    level = 0.0
    for number, (taken, size) in enumerate(rising):
        held, room = held + taken, room + size
        under.append((taken, size))
        level = (held + amount) / room
        if number + 1 == len(rising) or level <= rising[number + 1][0] / rising[number + 1][1]:
            break
    over = rising[len(under) :]
    return level**2 * room + sum(taken**2 / size for taken, size in over)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
