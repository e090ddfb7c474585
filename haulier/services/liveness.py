"""Whether a node's worker is heard."""

from __future__ import annotations

from haulier.clock import now
from models import Node


def silent_s(node: Node, *, limit_s: float) -> float | None:
    """None if the node's worker lives, else for how many seconds it has not been heard (infinite: not at all)."""
    if node.heartbeat_at is None:
        return float("inf")
    age = (now() - node.heartbeat_at).total_seconds()
    return age if age > limit_s else None
