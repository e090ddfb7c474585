"""How fast to send a guest's RAM, and how long a pause to allow, so that the pause is short and still comes.

Measured (docs/performance.md): at full speed to the end, megabytes wait in socket buffers when the guest is paused, and
the target eats them inside the pause. So the first pass over the RAM goes at full speed and the later ones at a pace
that only has to be well above the rate at which the guest dirties its RAM.
"""

from __future__ import annotations

# Allowed during the first pass, so that QEMU does not pause the guest in the middle of the flood.
FIRST_PASS_LIMIT_MS = 1
_LEAST_PACE_BYTES_PER_S = 64 << 20
_PACE_OVER_DIRTYING = 4
# A guest that has not settled after this many passes will not by itself.
_PATIENCE_PASSES = 15
_PASSES_PER_DOUBLING = 10
_LONGEST_MS = 8_000


def pace_bytes_per_s(dirty_bytes_per_s: int, *, at_most: int) -> int:
    """How fast to send from the second pass on; never faster than `at_most`."""
    return min(at_most, max(_LEAST_PACE_BYTES_PER_S, _PACE_OVER_DIRTYING * dirty_bytes_per_s))


def next_downtime_limit_ms(passes: int, *, first_ms: int) -> int:
    """The allowed pause in milliseconds after so many passes over the RAM: doubled every ten passes beyond fifteen."""
    doublings = max(0, (passes - _PATIENCE_PASSES) // _PASSES_PER_DOUBLING + 1) if passes > _PATIENCE_PASSES else 0
    return max(first_ms, min(first_ms << min(doublings, 16), _LONGEST_MS))
