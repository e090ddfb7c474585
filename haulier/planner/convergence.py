"""How fast to send a guest's RAM, and how long a pause to allow, so that the pause is short and still comes.

Measured (docs/performance.md): at full speed to the end, megabytes wait in socket buffers when the guest is paused, and
the target eats them inside the pause. So the less is left, the slower it is sent, as long as that is well above the
rate at which the guest dirties its RAM. The end of the first pass is sent slowest: QEMU pauses a guest that has dirtied
little right after it, and what is left then says little, because pages of zeros cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

# How often the stream should be looked at.
LOOK_S = 0.05
# What is left should take so long; QEMU sends in bursts, one each 100 ms, and the last one should be small.
_LANDING_S = 0.5
_LEAST_BYTES_PER_S = 32 << 20
_END_OF_FIRST_PASS_BYTES = 96 << 20
_OVER_DIRTYING = 2.5
# Allowed during the first pass, so that QEMU does not pause the guest in the middle of it.
_FIRST_PASS_LIMIT_MS = 1
# A guest that has not settled after this many passes will not by itself.
_PATIENCE_PASSES = 15
_PASSES_PER_DOUBLING = 10
# Nor after this time: on a slow link, or with a small share of it, a single pass takes many seconds.
_PATIENCE_S = 60.0
_S_PER_DOUBLING = 15.0
_LONGEST_MS = 8_000
# What QEMU takes as a limit, for a guest that may stand still for as long as it takes; from any limit it is reached.
_NO_END_MS = 2_000_000
_DOUBLINGS = 21


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """How the stream goes: RAM that is left, what is dirtied a second, passes over the RAM so far, and for how many
    seconds it has gone on after the first of these.
    """

    remaining_bytes: int
    dirty_bytes_per_s: int
    passes: int
    settling_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast to send and how long a pause to allow."""

    bytes_per_s: int
    downtime_limit_ms: int


# Until the stream has been looked at for the first time.
FIRST_PACE = Pace(_LEAST_BYTES_PER_S, _FIRST_PASS_LIMIT_MS)


def choose_pace(facts: StreamFacts, *, at_most: int, first_ms: int, may_pause: bool = False) -> Pace:
    """The pace from now on: never faster than `at_most`, a pause of `first_ms` unless the guest does not settle; one
    that `may_pause` gets any pause in the end.
    """
    if facts.passes <= 1:
        slow = facts.remaining_bytes <= _END_OF_FIRST_PASS_BYTES
        return Pace(min(at_most, _LEAST_BYTES_PER_S if slow else _landing(facts)), _FIRST_PASS_LIMIT_MS)
    longest_ms = _NO_END_MS if may_pause else _LONGEST_MS
    limit_ms = next_downtime_limit_ms(facts.passes, facts.settling_s, first_ms=first_ms, longest_ms=longest_ms)
    return Pace(min(at_most, _landing(facts)), limit_ms)


def _landing(facts: StreamFacts) -> int:
    wanted = max(facts.remaining_bytes / _LANDING_S, _OVER_DIRTYING * facts.dirty_bytes_per_s)
    return max(_LEAST_BYTES_PER_S, int(wanted))


def next_downtime_limit_ms(passes: int, settling_s: float, *, first_ms: int, longest_ms: int = _LONGEST_MS) -> int:
    """The allowed pause in milliseconds after so many passes over the RAM, and seconds after the first of them: doubled
    every ten passes beyond fifteen, or every fifteen seconds beyond a minute, whichever is more; up to `longest_ms`.
    """
    by_passes = (passes - _PATIENCE_PASSES) // _PASSES_PER_DOUBLING + 1 if passes > _PATIENCE_PASSES else 0
    by_time = int((settling_s - _PATIENCE_S) // _S_PER_DOUBLING) + 1 if settling_s > _PATIENCE_S else 0
    return max(first_ms, min(first_ms << min(max(by_passes, by_time), _DOUBLINGS), longest_ms))
