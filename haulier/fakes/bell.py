"""How something on a fake host wakes those who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class FakeBell:
    """Rung when something has changed. Those who wait may be in different event loops, and in some that have ended."""

    _waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def ring(self) -> None:
        for future in self._waiting:
            if not future.done() and not future.get_loop().is_closed():
                future.set_result(None)

    async def until(self, is_true: Callable[[], object]) -> None:
        """Wait until something is true."""
        while not is_true():
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            try:
                await future
            finally:
                self._waiting.remove(future)
