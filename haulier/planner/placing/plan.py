"""The plan of an evacuation: who goes where and why, who cannot go and why, and what the hosts are like then. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from haulier.errors import Problem
from haulier.planner.placing.arrangement import Arrangement
from haulier.planner.placing.cluster import PARTNER_LEAVING, Cluster, Guest, Host, RuleKind
from haulier.planner.placing.greedy import arrange
from haulier.planner.placing.loads import Load, loads
from haulier.planner.placing.search import improve
from haulier.planner.placing.spare import without_spare

# Nobody reads why each of a hundred nodes will not do.
_NAMED = 4


@dataclass(frozen=True, slots=True)
class Move:
    """A guest and where it goes, with the reason in words."""

    guest: str
    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """A guest that cannot go anywhere, and why."""

    guest: str
    problem: Problem


@dataclass(frozen=True, slots=True)
class Placing:
    """All of it. `gap` is by what part it may cost more than the best there can be; None where guests are blocked."""

    moves: tuple[Move, ...]
    blocked: tuple[Blocked, ...]
    loads: tuple[Load, ...]
    spare: tuple[Problem, ...]
    gap: float | None
    cut_short: bool


def place(cluster: Cluster, *, clock: Callable[[], float], time_s: float) -> Placing:
    """Find a place for each guest, the best that is found in `time_s` seconds of this clock.

    The same cluster gets the same places, unless it was cut short. The moves are in the order in which they are to be
    begun: what takes longest first, so that nothing long is left at the end.
    """
    start = arrange(cluster)
    found = improve(start, clock=clock, time_s=time_s)
    best = found.arrangement
    longest = sorted(cluster.guests, key=lambda guest: (-guest.bytes, guest.name))
    moves = tuple(
        Move(guest.name, best.places[guest.name], _reason(best, guest))
        for guest in longest
        if guest.name in best.places
    )
    blocked = tuple(Blocked(guest.name, _why_not(best, guest)) for guest in best.homeless)
    gap = None if blocked else max(best.cost() / max(best.bound(), 1e-9) - 1, 0.0)
    return Placing(moves, blocked, tuple(loads(best)), without_spare(best), gap, found.cut_short)


def _reason(arrangement: Arrangement, guest: Guest) -> str:
    """Why there: what left no choice, or what spoke for it."""
    cluster = arrangement.cluster
    host = cluster.by_name[arrangement.places[guest.name]]
    full = f"RAM {_percent(arrangement.ram_taken(host.name), host)} full then"
    fit = [each for each in cluster.hosts if arrangement.never(guest, each) is None]
    if len(fit) == 1:
        return f"the only node that it may go to; {full}"
    if host.name in guest.near:
        return f"its replica is there; {full}"
    for rule in cluster.rules_of.get(guest.name, ()):
        if rule.kind is RuleKind.TOGETHER and arrangement.members(rule).get(host.name, 0) > 1:
            return f"together with others of rule {rule.name}; {full}"
    return f"the best balance of {len(fit)} nodes that it may go to; {full}"


def _percent(taken: float, host: Host) -> str:
    return f"{taken / max(host.ram_bytes, 1):.0%}"


def _why_not(arrangement: Arrangement, guest: Guest) -> Problem:
    """The reasons of all hosts in one, first those that take guests; the code is that of these' most frequent one, but
    where one of them passes by itself that says so.
    """
    cluster = arrangement.cluster
    others = [host for host in cluster.hosts if host.name != guest.host]
    if not others:
        return Problem("no_target", "there is no other node", "Start a worker on another host.")
    found = [(host, problem) for host in others if (problem := arrangement.problem(guest, host)) is not None]
    if len(found) < len(others):
        # It would fit by itself, but those that it must be together with would not.
        together = [rule.name for rule in cluster.rules_of.get(guest.name, ()) if rule.kind is RuleKind.TOGETHER]
        why = f"those that it must be together with by rule {', '.join(together)} find no place with it"
        return Problem("rule", why, "haulier rule list")
    if len(found) == 1:
        return found[0][1]
    found.sort(key=lambda each: each[0].closed is not None)
    telling = [problem for host, problem in found if host.closed is None] or [problem for _, problem in found]
    codes = Counter(problem.code for problem in telling)
    code = PARTNER_LEAVING if PARTNER_LEAVING in codes else codes.most_common(1)[0][0]
    hint = next(problem.hint for problem in telling if problem.code == code)
    words = _each_once(found)
    more = f"; and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return Problem(code, f"no node takes it: {'; '.join(words[:_NAMED])}{more}", hint)


def _each_once(found: Sequence[tuple[Host, Problem]]) -> list[str]:
    """The reasons in words; what a rule says of several hosts in one."""
    hosts: dict[str, list[str]] = {}
    for host, problem in found:
        words = problem.message.replace(host.name, "{}") if problem.code == "rule" else problem.message
        hosts.setdefault(words, []).append(host.name)
    return [words.replace("{}", ", ".join(names)) for words, names in hosts.items()]
