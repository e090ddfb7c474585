"""Work is done by one, for all who have asked before it began."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.coalescing import Coalesced


def test_who_asks_meanwhile_goes_away_and_it_is_done_once_more() -> None:
    begun, go_on, runs = threading.Semaphore(0), threading.Semaphore(0), list[int]()

    def work() -> None:
        runs.append(1)
        begun.release()
        go_on.acquire()

    once = Coalesced(work)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(once)
        begun.acquire()
        for _ in range(5):
            once()
        assert len(runs) == 1
        go_on.release()
        begun.acquire()
        go_on.release()
        first.result()
    assert len(runs) == 2


def test_nobody_who_asks_is_forgotten() -> None:
    """Whatever the threads do: after the last has asked, it is run."""
    asked, seen, lock = [0], [0], threading.Lock()

    def work() -> None:
        seen[0] = asked[0]

    once = Coalesced(work)

    def ask() -> None:
        for _ in range(2000):
            with lock:
                asked[0] += 1
            once()

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(ask) for _ in range(8)]:
            future.result()
    assert seen == asked == [16_000]


def test_what_failed_can_be_asked_for_again() -> None:
    runs = list[int]()

    def work() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("the database is away")

    once = Coalesced(work)
    with pytest.raises(ValueError, match="away"):
        once()
    once()
    assert len(runs) == 2


def test_one_who_asks_between_the_last_look_and_the_end_is_heard() -> None:
    runs = list[int]()
    once = Coalesced(lambda: runs.append(1))
    lock = once._running

    class LateCaller:
        """Somebody asks just before the lock is free, and goes away because it is not."""

        def acquire(self, *, blocking: bool) -> bool:
            return lock.acquire(blocking=blocking)

        def release(self) -> None:
            if len(runs) == 1:
                once()
            lock.release()

    once._running = LateCaller()  # type: ignore[assignment]
    once()
    assert len(runs) == 2
