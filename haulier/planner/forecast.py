"""When those that wait will begin and end, if all goes on as it does now: the queue played in advance. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from haulier.planner.admission import Closed, Limits, Room, Wish

# So many of those that wait are looked at for each that ends; farther down the guess is worth little anyway.
_WINDOW = 64
_NONE_CLOSED = Closed()
# Beyond this place in the queue nothing is said.
MOST = 2000


@dataclass(frozen=True, slots=True)
class Running:
    """One that is at work, and for how many seconds more."""

    id: int
    source: str
    target: str
    left_s: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """One that waits, and how many seconds it will take."""

    wish: Wish
    takes_s: float


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when, in seconds from now on."""

    begin_s: float
    end_s: float


def forecast(
    waiting: Sequence[Waiting], running: Iterable[Running], limits: Limits, *, closed: Closed = _NONE_CLOSED
) -> dict[int, Span]:
    """The spans of those at work and of those that wait, given in the queue's order, by their numbers.

    One that is blocked, whose node is closed, or that no end of another will let in, is not among them.
    """
    at_work = [(each.left_s, each.id, each.source, each.target) for each in running]
    spans = {each_id: Span(0.0, left_s) for left_s, each_id, _, _ in at_work}
    room = Room(limits, [(source, target) for _, _, source, target in at_work], closed=closed)
    heapq.heapify(at_work)
    left = [each for each in waiting[:MOST] if each.wish.blocked is None]
    moment = 0.0
    while True:
        for each in [each for each in left[:_WINDOW] if _enters(room, each.wish)]:
            left.remove(each)
            spans[each.wish.id] = Span(moment, moment + each.takes_s)
            heapq.heappush(at_work, (moment + each.takes_s, each.wish.id, each.wish.source, each.wish.target))
        if not left or not at_work:
            return spans
        moment, _, source, target = heapq.heappop(at_work)
        room.give_back(source, target)


def _enters(room: Room, wish: Wish) -> bool:
    if room.hold(wish.source, wish.target) is not None:
        return False
    room.take(wish.source, wish.target)
    return True
