"""A worker that has taken as many messages as it may is told when one of its threads begins with the next.

Celery's loop asks the broker for more only when it turns, and it sleeps until something comes from outside: with all it
may take in hand nothing does. A thread that takes one of those is inside, so that up to ten seconds went by, until some
timer of the loop was due, with free threads and messages that waited.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.signals import task_prerun


class WakeUp(bootsteps.StartStopStep):
    """Begins with each connection of a worker, and ends with it."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:  # noqa: ANN401 - Celery's own have no types
        super().__init__(consumer, **options)
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def start(self, consumer: Any) -> None:  # noqa: ANN401
        """Have the loop turn whenever a thread begins with a message."""
        if consumer.hub is None:
            return
        heard, ring = self._ends = socket.socketpair()
        for end in self._ends:
            end.setblocking(False)

        def wake(**_: object) -> None:
            # One that is not read yet is enough.
            with suppress(OSError):
                ring.send(b".")

        def hear() -> None:
            with suppress(OSError):
                heard.recv(4096)

        consumer.hub.add_reader(heard.fileno(), hear)
        task_prerun.connect(wake, weak=False, dispatch_uid=WakeUp.__name__)

    def stop(self, consumer: Any) -> None:  # noqa: ANN401
        """Safe to call twice."""
        task_prerun.disconnect(dispatch_uid=WakeUp.__name__)
        if self._ends is not None:
            heard, ring = self._ends
            consumer.hub.remove_reader(heard.fileno())
            heard.close()
            ring.close()
            self._ends = None
