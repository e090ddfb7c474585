"""When a guest dirties its RAM faster than it can be sent: how long a pause to allow then."""

from __future__ import annotations

# QEMU sends all RAM in pass 1; a guest that has not settled after this many passes will not by itself.
_PATIENCE_PASSES = 15
_PASSES_PER_DOUBLING = 10
_LONGEST_MS = 8_000


def next_downtime_limit_ms(passes: int, *, first_ms: int) -> int:
    """The allowed pause in milliseconds after so many passes over the RAM: doubled every ten passes beyond fifteen."""
    doublings = max(0, (passes - _PATIENCE_PASSES) // _PASSES_PER_DOUBLING + 1) if passes > _PATIENCE_PASSES else 0
    return max(first_ms, min(first_ms << min(doublings, 16), _LONGEST_MS))
