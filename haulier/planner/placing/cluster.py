"""What is known when guests are placed: hosts with room, guests that need it, rules about who is beside whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from math import inf

from haulier.errors import Problem

GIB = 1 << 30
# A place is kept from a guest by one that is about to leave it: it may be asked for again.
PARTNER_LEAVING = "partner_leaving"


@dataclass(frozen=True, slots=True)
class StorageRoom:
    """A storage of a host; `free_bytes` is infinite where nobody knows. One that is `shared` needs no room."""

    free_bytes: float = inf
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """A node with the room that guests may have there in all, and what is taken of it by all but those to be placed.

    `closed` is why it takes nobody. What is None is not known, and refuses nobody.
    """

    name: str
    ram_bytes: int
    ram_taken_bytes: int = 0
    cpus: float = inf
    cpus_taken: float = 0.0
    storages: Mapping[str, StorageRoom] = field(default_factory=dict)
    machines: frozenset[str] | None = None
    accel: str | None = None
    cpu_model: str | None = None
    bridges: frozenset[str] | None = None
    has_swtpm: bool = True
    libtpms: str | None = None
    closed: Problem | None = None


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM that is to be placed, or that has its place. `runs`: it needs RAM and CPUs at once.

    `storages` are the bytes that it has on each, `bridges` those that its cards need. `cpu_model` is the host's, if the
    guest sees that one. `near` are hosts where most of it lies already, `avoids` those that it cannot go to, and why.
    One that stays may be `leaving` another host for its own: there it is until then, and longer if that fails. It does
    not get away by itself if it `is_held`.
    """

    name: str
    host: str
    ram_bytes: int
    cpus: int = 1
    runs: bool = True
    storages: Mapping[str, int] = field(default_factory=dict)
    machine: str | None = None
    accel: str | None = None
    cpu_model: str | None = None
    bridges: frozenset[str] = frozenset()
    libtpms: str | None = None
    has_tpm: bool = False
    near: frozenset[str] = frozenset()
    avoids: Mapping[str, Problem] = field(default_factory=dict)
    leaving: str | None = None
    is_held: bool = False

    def needs(self, host: str) -> Mapping[str, int]:
        """The bytes that it needs on each storage of a host: where a replica is, that has its room already."""
        return {} if host in self.near else self.storages

    @property
    def bytes(self) -> int:
        """What is to cross, if nothing of it is there."""
        return (self.ram_bytes if self.runs else 0) + sum(self.storages.values())


class RuleKind(StrEnum):
    """What a rule asks of its guests: one host for all, a host for each, some hosts only, others than some."""

    TOGETHER = "together"
    APART = "apart"
    ONLY_ON = "only_on"
    NOT_ON = "not_on"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is wished of some guests. One that is `hard` keeps a guest where it is rather than be broken."""

    name: str
    kind: RuleKind
    guests: frozenset[str]
    hosts: frozenset[str] = frozenset()
    hard: bool = True


@dataclass(frozen=True)
class Cluster:
    """All hosts, the guests to be placed, those that stay where they are, and the rules."""

    hosts: tuple[Host, ...]
    guests: tuple[Guest, ...]
    staying: tuple[Guest, ...] = ()
    rules: tuple[Rule, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Host]:
        return {host.name: host for host in self.hosts}

    @cached_property
    def guest_named(self) -> Mapping[str, Guest]:
        return {guest.name: guest for guest in (*self.guests, *self.staying)}

    @cached_property
    def rules_of(self) -> Mapping[str, tuple[Rule, ...]]:
        """The rules that name each guest."""
        found: dict[str, list[Rule]] = {}
        for rule in self.rules:
            for guest in sorted(rule.guests):
                found.setdefault(guest, []).append(rule)
        return {guest: tuple(rules) for guest, rules in found.items()}

    @cached_property
    def staying_by_rule(self) -> tuple[Guest, ...]:
        """Those that stay and that a rule names."""
        return tuple(guest for guest in self.staying if guest.name in self.rules_of)

    @cached_property
    def kept_from(self) -> Mapping[str, Mapping[str, Problem]]:
        """The hosts that a hard rule keeps guests from only because another one has not left there, and why."""
        found: dict[str, dict[str, Problem]] = {}
        for guest in self.staying_by_rule:
            for rule in self.rules_of[guest.name] if guest.leaving else ():
                if rule.hard and rule.kind is RuleKind.APART:
                    for name in rule.guests - {guest.name}:
                        found.setdefault(name, {}).setdefault(str(guest.leaving), _still_there(rule, guest))
        return found

    @cached_property
    def ram_bytes(self) -> int:
        return sum(host.ram_bytes for host in self.hosts)

    @cached_property
    def bytes(self) -> int:
        return sum(guest.bytes for guest in self.guests)


def _still_there(rule: Rule, guest: Guest) -> Problem:
    words = f"rule {rule.name} ({rule.kind}) keeps it from {guest.leaving}"
    if guest.is_held:
        words += f", which {guest.name} is to leave for {guest.host}, and does not by itself"
        return Problem("rule", words, "haulier queue")
    return Problem(PARTNER_LEAVING, f"{words} until {guest.name} has left for {guest.host}", "haulier queue")
