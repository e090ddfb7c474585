"""Few may have VMs placed at once: each takes a core for seconds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from haulier.errors import Transient

_places = threading.BoundedSemaphore(2)


@contextmanager
def one_of_few() -> Iterator[None]:
    """Raises Transient `busy` where enough are at it already."""
    if not _places.acquire(blocking=False):
        raise Transient("busy", "others are having VMs placed", "Ask again.", retry_after_s=5.0)
    try:
        yield
    finally:
        _places.release()
