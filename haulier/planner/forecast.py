"""When those that wait will begin and end, if all goes on as it does now: the queue played in advance. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from haulier.planner.admission import Room, Wish

# So many of those that wait are looked at for each that ends; farther down the guess is worth little anyway.
_WINDOW = 64
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


def forecast(waiting: Sequence[Waiting], running: Iterable[Running], room: Room) -> dict[int, Span]:
    """The spans of those at work and of those that wait, given in the queue's order, by their numbers.

    `room` is what is left beside those at work; it is used up. One that is blocked, whose node is closed, or that no
    end of another will let in, is not among them.
    """
    at_work = [(each.left_s, each.id, each.source, each.target) for each in running]
    spans = {each_id: Span(0.0, left_s) for left_s, each_id, _, _ in at_work}
    heapq.heapify(at_work)
    left = [each for each in waiting[:MOST] if each.wish.blocked is None]
    moment = 0.0
    while left:
        full = set(room.labels.full(at_s=moment))
        for each in _entering(left, room, full, moment):
            left.remove(each)
            spans[each.wish.id] = Span(moment, moment + each.takes_s)
            heapq.heappush(at_work, (moment + each.takes_s, each.wish.id, each.wish.source, each.wish.target))
        by_label = room.labels.next_free_s(full)
        if not at_work and by_label is None:
            break
        moment = min(at_work[0][0] if at_work else inf, inf if by_label is None else by_label)
        # All that ends then, before anybody is let in: else who stands behind might be asked first.
        while at_work and at_work[0][0] <= moment:
            _, _, source, target = heapq.heappop(at_work)
            room.give_back(source, target)
    return spans


def _entering(left: Iterable[Waiting], room: Room, full: set[str], moment: float) -> list[Waiting]:
    """Let in who may begin at this moment, of the first whose labels let anything begin; these are in `full` if not."""
    entering, looked_at = list[Waiting](), 0
    for each in left:
        label = each.wish.label
        if label in full:
            continue
        if room.hold_of(each.wish, at_s=moment) is None:
            room.let_in(each.wish, at_s=moment)
            entering.append(each)
        if label is not None and room.labels.hold(label, at_s=moment) is not None:
            full.add(label)
        looked_at += 1
        if looked_at == _WINDOW:
            break
    return entering
