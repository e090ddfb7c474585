"""Work that is asked for often, and done by one thread for all who have asked, once more if somebody did meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Coalesced:
    """Work of which one run, begun after the last time it was asked for, is enough; in this process one runs at a time.

    Who asks while it runs goes away at once, and it is run once more.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._running = threading.Lock()
        self._asked = threading.Event()

    def __call__(self) -> None:
        """Ask for it, and do it if nobody else does. Raises what the work raises; what was asked for is asked again
        then by whoever comes next.
        """
        self._asked.set()
        # Asked once more after the lock is free: somebody may have come between the last look and that.
        while self._asked.is_set() and self._running.acquire(blocking=False):
            try:
                while self._asked.is_set():
                    self._asked.clear()
                    self._work()
            finally:
                self._running.release()
