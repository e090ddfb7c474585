"""Threads of which one runs at a time, from one of its effects to the next, and event loops in a time that is told.

The product's code runs in them unchanged. A strand can be left where it is, or killed there as `kill -9` does: from
then on it changes nothing any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

EPOCH = 1_800_000_000.0


class Clock:
    """The time of all nodes, in seconds since 1970. It passes when somebody says so."""

    def __init__(self) -> None:
        self.time = EPOCH

    def read(self) -> float:
        return self.time


class Killed(SystemExit):
    """The process has ended. As SystemExit it goes through an event loop at once."""


class Strand:
    """One thing that a worker, its owner, does."""

    current: Strand | None = None

    def __init__(self, name: str, work: Callable[[], object], *, clock: Clock, owner: object) -> None:
        self.name = name
        self.clock = clock
        self.owner = owner
        self.stalled = self.killed = self.done = False
        self.waits_for: Callable[[], bool] | None = None
        self.error: BaseException | None = None
        self._work = work
        self._mine, self._theirs = threading.Lock(), threading.Lock()
        self._mine.acquire()
        self._theirs.acquire()
        threading.Thread(target=self._live, daemon=True).start()

    def __str__(self) -> str:
        return self.name

    def _live(self) -> None:
        self._mine.acquire()
        try:
            if not self.killed:
                self._work()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - whoever plays gets it
            self.error = error
        self.done = True
        self._theirs.release()

    @property
    def can_go_on(self) -> bool:
        """Whether it has something to do now: it stands before an effect, or what it waits for has come."""
        return not self.done and (self.waits_for is None or self.waits_for())

    def go_on(self) -> None:
        """Let it run until its next effect. Raises what its work raised."""
        Strand.current = self
        self._mine.release()
        self._theirs.acquire()
        Strand.current = None
        if self.error is not None:
            raise self.error

    def pause(self, *, until: Callable[[], bool] | None = None) -> None:
        """Called inside: let others run. With `until` there is nothing to do before that is true."""
        self.waits_for = until
        self._theirs.release()
        self._mine.acquire()
        self.waits_for = None
        if self.killed:
            raise Killed

    def kill(self) -> None:
        """It ends where it stands."""
        self.killed = True
        if not self.done:
            with suppress(BaseException):
                self.go_on()


def on_effect(changes: bool) -> None:
    """Before an effect of a strand others may run; one that was killed has none."""
    strand = Strand.current
    if strand is None:
        return
    if strand.killed:
        raise Killed
    if changes:
        strand.pause()


class Loop(asyncio.BaseEventLoop):
    """An event loop of a strand. Threads it is asked for are not begun: their work is done in the loop's own turn."""

    def __init__(self, strand: Strand) -> None:
        super().__init__()
        self._strand = strand
        self._selector = self
        # A float of so many seconds knows no nanoseconds.
        self._clock_resolution = 1e-3
        self.set_exception_handler(lambda *_: None)

    def time(self) -> float:
        return self._strand.clock.time

    def is_due(self) -> bool:
        ready, timers = self.__dict__["_ready"], self.__dict__["_scheduled"]
        return bool(ready) or bool(timers and timers[0].when() <= self.time())

    def select(self, timeout: float | None) -> list[object]:
        if timeout != 0:
            self._strand.pause(until=self.is_due)
        return []

    def _process_events(self, events: list[object]) -> None:
        del events

    def _write_to_self(self) -> None: ...

    def run_in_executor(  # type: ignore[override]  # its own variadic type says no more
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        del executor
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - the waiter's
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_soon(work)
        return future


def run(main: Coroutine[Any, Any, Any], **_: object) -> Any:
    """What asyncio.run is, inside a strand."""
    strand = Strand.current
    assert strand is not None
    loop = Loop(strand)
    try:
        return loop.run_until_complete(main)
    finally:
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio.gather does
            _close(task.get_coro())
        loop.close()


def _close(work: Any) -> None:
    """End a coroutine where it stands; one that awaits while it is being ended is ended there again."""
    for _ in range(50):
        with suppress(BaseException):
            work.close()
        if work.cr_frame is None:
            return
