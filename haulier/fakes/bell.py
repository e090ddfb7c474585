"""How something on a fake host wakes those who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class FakeBell:
    """Rung when something has changed. Those who wait may be in the event loops of different threads, and in some that
    have ended.
    """

    _waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def ring(self) -> None:
        for future in tuple(self._waiting):
            loop = future.get_loop()
            if loop is asyncio._get_running_loop():
                _wake(future)
            elif not loop.is_closed():
                with suppress(RuntimeError):  # it has been closed just now
                    loop.call_soon_threadsafe(_wake, future)

    async def until(self, is_true: Callable[[], object]) -> None:
        """Wait until something is true."""
        while True:
            future = asyncio.get_running_loop().create_future()
            # Before the look: what changes after it, in another thread, is heard.
            self._waiting.append(future)
            try:
                if is_true():
                    return
                await future
            finally:
                self._waiting.remove(future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
