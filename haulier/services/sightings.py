"""For how long something is known not to have changed, by the steady clock of the process that has looked at it.

Who works renews a lease, and who lives beats: again and again there is another value. Whoever sees the same value for
as long as it may stay the same knows that nobody renews it any more, whatever the time of day is here or there, and
however it jumps. A process that has just begun has seen nothing yet: it decides later, and never too early.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from haulier.clock import steady_s


class Seen(NamedTuple):
    """A value that is expected to change within `limit_s` seconds."""

    value: object
    limit_s: float


class Sightings:
    """What one process has seen; its threads may share it."""

    def __init__(self, steady: Callable[[], float] | None = None) -> None:
        self._steady = steady
        self._kinds: dict[str, dict[int, tuple[Seen, float]]] = {}
        self._lock = threading.Lock()

    def moment(self) -> float:
        """The steady clock, to be read before what is looked at."""
        return (self._steady or steady_s)()

    def unchanged(self, kind: str, seen: Mapping[int, Seen], *, asked: float) -> set[int]:
        """Look at all of a kind, by their numbers; those of them that stayed as they are for their limit or longer.

        They were as they are at the `moment` when it was `asked`, and not at this one: whoever was frozen in between
        has seen nothing meanwhile. What is not there any more is forgotten, and begins anew if it comes again.
        """
        with self._lock:
            moment, known = self.moment(), self._kinds.get(kind, {})
            looked = {
                key: known[key] if key in known and known[key][0] == value else (value, moment)
                for key, value in seen.items()
            }
            self._kinds[kind] = looked
        return {key for key, (seen_, since) in looked.items() if seen_.limit_s <= 0 or asked - since >= seen_.limit_s}
