"""Whether a node's worker is heard."""

from __future__ import annotations

from datetime import datetime

from haulier.clock import now
from haulier.services.sightings import Seen
from models import Node


def silent_s(node: Node, *, limit_s: float) -> float | None:
    """None if the node's worker lives, else for how many seconds it has not been heard (infinite: not at all).

    Told by the time of day here and there: good enough for what may be asked again. It is negative if the beat is of a
    time that is yet to come: then one of two clocks is wrong, and nobody knows.
    """
    return unheard_s(node.heartbeat_at, limit_s=limit_s)


def unheard_s(heartbeat_at: datetime | None, *, limit_s: float) -> float | None:
    """The same of a beat."""
    if heartbeat_at is None:
        return float("inf")
    age = (now() - heartbeat_at).total_seconds()
    return age if abs(age) > limit_s else None


def beat_seen(heartbeat_at: datetime | None, *, limit_s: float) -> Seen:
    """A node's beat, to be looked at again and again by whoever decides something that cannot be asked again."""
    return Seen(heartbeat_at, limit_s if heartbeat_at else 0.0)
