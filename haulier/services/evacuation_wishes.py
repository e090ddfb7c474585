"""What whoever has a node emptied wishes, and when all is brought back by itself: as windows, holds, alerts and persons
want it, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.services.causes import ALERT, ROLL, WINDOW, number_of
from models import Evacuation, EvacuationState, MaintenanceWindow, NodeState, Roll

_E = EvacuationState


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a node is to be emptied. With `spare` any one node may fail afterwards, and its VMs find RAM on the others.
    It must be done by the `deadline`. At `restore_at` all is brought back, and `hold_s` after the node was drained.
    `window`: nobody asks but a window. `roll_id`: it is the node's turn in a roll. `cause`: who asks, if no person;
    `alert` which alert, which is done then.
    """

    spare: bool = False
    deadline: datetime | None = None
    restore_at: datetime | None = None
    hold_s: float | None = None
    window: bool = False
    cause: str | None = None
    roll_id: int | None = None
    alert: int | None = None


USUAL_WISHES = Wishes()


def wish_too(evacuation: Evacuation, wishes: Wishes) -> None:
    """What is an alert's is another one's from now on; an alert gets only what was just to be filled. A person's hold
    is the one that counts.
    """
    until, is_filled = evacuation.restore_at, evacuation.node_was is NodeState.ONLINE
    if wishes.alert is None and number_of(evacuation.cause, ALERT) is not None:
        evacuation.cause = wishes.cause
        evacuation.restore_at = wishes.restore_at if is_filled else None
        evacuation.hold_s = wishes.hold_s if is_filled else None
        if evacuation.state is _E.DRAINED:
            note_drained(evacuation, now())
    elif wishes.cause is None and wishes.hold_s is not None and is_filled:
        if evacuation.cause is None:
            # Its end was that of the hold before, and may be put off. One of a window's stands.
            evacuation.restore_at = None
        evacuation.hold_s = wishes.hold_s
        if evacuation.state is _E.DRAINED:
            hold_from(evacuation, now())
    elif wishes.alert is not None and until is not None and until <= now():
        evacuation.cause, evacuation.restore_at = wishes.cause, None
    elif wishes.window and until is not None:
        evacuation.restore_at = wishes.restore_at and max(until, wishes.restore_at)


def note_drained(evacuation: Evacuation, moment: datetime) -> None:
    """From now on it is held."""
    evacuation.drained_at = moment
    hold_from(evacuation, moment)


def hold_from(evacuation: Evacuation, moment: datetime) -> None:
    """All is brought back so long after a moment, but not past the one at which it is anyway."""
    if evacuation.hold_s is not None:
        held_until = moment + timedelta(seconds=evacuation.hold_s)
        evacuation.restore_at = min(held_until, evacuation.restore_at or held_until)


def end_beside_hold(session: Session, evacuation: Evacuation) -> datetime | None:
    """The end of the window or roll that has begun one that is held: when all is brought back at the latest, though its
    hold was over before. None where there is none, or it was taken away since.
    """
    if (roll_id := number_of(evacuation.cause, ROLL)) is not None:
        return session.scalar(select(Roll.restore_at).where(Roll.id == roll_id))
    window_id = number_of(evacuation.cause, WINDOW)
    window = None if window_id is None else session.get(MaintenanceWindow, window_id)
    if window is None or not window.restore or evacuation.deadline is None:
        return None
    # It was to be empty so long before the end.
    return evacuation.deadline + timedelta(seconds=window.hold_s or 0)
