"""Who of those that wait may begin: limits, what is at work under them, and the queue's order. Pure.

Nothing is counted up or down over time: whoever asks counts what is at work now, so that no counter can drift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from haulier.planner.labels import Labels
from haulier.planner.limits import PREPARE_WORDS, Closed, Hold, Limits, Words

K = TypeVar("K")

# A point of priority is worth so many seconds of waiting. Whoever waits grows older at the same pace as everybody, so
# the order of two never changes by itself, and nothing waits for ever behind what is filed later.
AGE_S = 60.0
# How far in the queue each one of a batch stands behind the one before it, in seconds: two batches of one moment go
# side by side, and a single migration does not wait for the five-hundredth of a batch that was filed just before it.
SHARE_S = 1.0
# Who is held by a limit for longer than this gets what is free of the others kept for it.
PATIENCE_S = 600.0
# Beyond this, either way, a number is a mistake.
MOST_PRIORITY = 1_000_000
# For so many at most, the oldest: all of them are looked at each time.
MOST_KEPT = 32
_NONE_CLOSED = Closed()


def rank(filed_at_s: float, *, priority: int, place: int = 0) -> float:
    """Where a migration stands in the queue: the lowest goes first. Fixed when it is filed, in seconds since 1970.

    `place` counts the migrations of its batch before it.
    """
    return filed_at_s + place * SHARE_S - priority * AGE_S


@dataclass(frozen=True, slots=True)
class Wish:
    """One that waits. `overdue`: it was filed longer ago than `PATIENCE_S`. `blocked`: by what else than a limit."""

    id: int
    source: str
    target: str
    label: str | None = None
    overdue: bool = False
    blocked: Hold | None = None


class Room:
    """What the limits leave beside those that are at work, each named by its source and its target."""

    def __init__(
        self,
        limits: Limits,
        at_work: Iterable[tuple[str, str]],
        *,
        closed: Closed = _NONE_CLOSED,
        words: Words = PREPARE_WORDS,
        labels: Labels | None = None,
    ) -> None:
        self.labels = labels or Labels()
        self._limits = limits
        self._words = words
        self._closed = closed
        self._cluster = 0
        self._out: Counter[str] = Counter()
        self._in: Counter[str] = Counter()
        self._pair: Counter[tuple[str, str]] = Counter()
        self._kept: Counter[tuple[str, str]] = Counter()
        self._kept_out: Counter[str] = Counter()
        self._kept_in: Counter[str] = Counter()
        for source, target in at_work:
            self.take(source, target)

    def take(self, source: str, target: str) -> None:
        """One more is at work."""
        self._cluster += 1
        self._out[source] += 1
        self._in[target] += 1
        self._pair[source, target] += 1

    def give_back(self, source: str, target: str) -> None:
        """One of them has ended."""
        self._cluster -= 1
        self._out[source] -= 1
        self._in[target] -= 1
        self._pair[source, target] -= 1

    def hold_of(self, wish: Wish, *, at_s: float = 0.0) -> Hold | None:
        """The first thing that is in the way of one that waits, in so many seconds, its label before the limits."""
        return self.labels.hold(wish.label, at_s=at_s) or self.hold(wish.source, wish.target)

    def let_in(self, wish: Wish, *, at_s: float = 0.0) -> None:
        """It is begun then."""
        self.labels.take(wish.label, at_s=at_s)
        self.take(wish.source, wish.target)

    def hold(self, source: str, target: str) -> Hold | None:
        """The first thing that is in the way of one more; None if there is room."""
        return next(self._holds(source, target), None)

    def _holds(self, source: str, target: str) -> Iterator[Hold]:
        for reason in (self._closed.sources.get(source), self._closed.targets.get(target)):
            if reason is not None:
                yield Hold("node", reason)
        limits, words, pair = self._limits, self._words, (source, target)
        asked = (
            ("cluster", self._cluster, 0, limits.cluster, words.cluster),
            ("out", self._out[source], self._kept_out[source], limits.out_of(source), words.out),
            ("in", self._in[target], self._kept_in[target], limits.into_of(target), words.into),
            ("pair", self._pair[pair], 0, limits.pair.get(pair, limits.usual_pair), words.pair),
        )
        for limit, in_use, kept, allowed, doing in asked:
            if allowed is not None and in_use + kept >= allowed:
                yield Hold(limit, _words(doing.format(*pair), in_use, kept, allowed), in_use, allowed)

    def keep_for(self, wish: Wish, hold: Hold) -> None:
        """Keep for one that is held at one node what is free at the other, so that two nodes that are never free at
        the same moment do not hold it for ever. For no more than may go through the limit that holds them.

        The cluster's limit and a pair's need no such care: what ends frees them together with a node's.
        """
        other = {"out": (self._kept_in, wish.target), "in": (self._kept_out, wish.source)}.get(hold.limit)
        place = (hold.limit, wish.source if hold.limit == "out" else wish.target)
        few = self._kept[place] < (hold.allowed or 0) and self._kept.total() < MOST_KEPT
        if other is not None and few:
            kept, node = other
            kept[node] += 1
            self._kept[place] += 1

    @property
    def is_full(self) -> bool:
        """Whether nothing at all can begin."""
        return self._limits.cluster is not None and self._cluster >= self._limits.cluster

    def full_sources(self) -> list[str]:
        """The nodes that nothing more can leave, of those with something at work or a limit of their own."""
        return [*self._closed.sources, *_full(self._out + self._kept_out, self._limits.out, self._limits.usual_out)]

    def full_targets(self) -> list[str]:
        """The nodes that nothing more can reach, of the same."""
        return [*self._closed.targets, *_full(self._in + self._kept_in, self._limits.into, self._limits.usual_in)]

    def full_pairs(self) -> list[tuple[str, str]]:
        """The pairs between which nothing more can go, of the same."""
        return _full(self._pair, self._limits.pair, self._limits.usual_pair)


def _words(doing: str, in_use: int, kept: int, allowed: int) -> str:
    if allowed == 0:
        left = f"; {in_use} are left" if in_use else ""
        return f"none may {doing.replace('are ', 'be ')}: the limit is 0{left}"
    rest = f", {kept} is kept for who waits for long" if in_use < allowed else ""
    return f"{in_use} {doing}, {allowed} may{rest}"


def _full(in_use: Counter[K], own: Mapping[K, int], usual: int | None) -> list[K]:
    limits = {place: own.get(place, usual) for place in {*in_use, *own}}
    return [place for place, allowed in limits.items() if allowed is not None and in_use[place] >= allowed]


def decide(waiting: Iterable[Wish], room: Room) -> tuple[list[Wish], dict[int, Hold]]:
    """Who of those that wait, given in the queue's order, may begin now, and by what each of the others is held.

    `room` is smaller afterwards by those who may. Whoever is held lets younger ones by, but see `Room.keep_for`.
    """
    granted, held = list[Wish](), dict[int, Hold]()
    for wish in waiting:
        hold = wish.blocked or room.hold_of(wish)
        if hold is None:
            room.let_in(wish)
            granted.append(wish)
            continue
        held[wish.id] = hold
        if wish.overdue:
            room.keep_for(wish, hold)
    return granted, held
