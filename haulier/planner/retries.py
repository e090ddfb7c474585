"""How long to wait before something that failed is tried again. Pure; chance is the caller's."""

from __future__ import annotations

_FIRST_S = 10.0
# Many that failed for one reason must not all come back at one moment.
_JITTER = 0.2


def delay_s(failures: int, *, at_most_s: float, chance: float) -> float:
    """The delay in seconds after so many failures in a row (1 or more): it doubles each time, up to `at_most_s`.

    `chance` (0 to 1) moves it by up to a fifth in either direction.
    """
    # 2 ** 40 is beyond any limit, and far below what a float can hold.
    grown = min(_FIRST_S * 2.0 ** min(failures - 1, 40), at_most_s)
    return grown * (1 - _JITTER + 2 * _JITTER * chance)
