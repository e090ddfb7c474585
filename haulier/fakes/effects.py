"""Where whoever plays comes in: before every effect on a fake host, and at every look at one.

Product code runs on the fakes unchanged. Between two of its effects a player may let others do something, or let the
worker die: its hook raises then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with True before something is changed, with False before something is only looked at.
Hook = Callable[[bool], None]
_hooks: list[Hook] = []


def effect() -> None:
    """Something is about to be changed."""
    for hook in _hooks:
        hook(True)


def look() -> None:
    """Something is about to be looked at."""
    for hook in _hooks:
        hook(False)


@contextmanager
def played_by(hook: Hook) -> Iterator[None]:
    """Inside the block the hook is told of every effect and every look."""
    _hooks.append(hook)
    try:
        yield
    finally:
        _hooks.remove(hook)
