"""The one place of these tests that lets time pass: look until there is something to see, or say what never came."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(what: str, look: Callable[[], T | None], *, deadline_s: float = 60.0, every_s: float = 0.05) -> T:
    """Return the first thing that `look` gives which is true. Raises TimeoutError naming `what`.

    No rows are nothing to see, as no row is none.
    """
    end = time.monotonic() + deadline_s
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline_s:g} s")
        time.sleep(every_s)


def let_pass(seconds: float) -> None:
    """Let a fault last so long. Never a way to wait for something."""
    time.sleep(seconds)
