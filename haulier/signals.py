"""Wake-up calls between processes: "look at the database, something changed". Never the truth, only a nudge.

A call may be lost and nothing breaks: everybody who waits looks at the database anyway, only later. Redis carries the
calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

_CHANNEL = "haulier:changes"


def _url(broker_url: str) -> str:
    """Kombu and redis-py spell a socket's URL differently."""
    return broker_url.replace("redis+socket://", "unix://", 1)


class Signals:
    """Publishes and awaits changes. One object a process."""

    def __init__(self, broker_url: str) -> None:
        # redis-py gives up after five seconds unless told; a nudge is not worth more than one.
        self._client = redis.Redis.from_url(
            _url(broker_url), socket_timeout=1.0, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 1)
        )
        self._broker_url = broker_url

    def answers(self) -> bool:
        """Whether the broker is there, within some two seconds."""
        try:
            return bool(self._client.ping())
        except (redis.RedisError, OSError):
            return False

    def ring(self, topic: str) -> None:
        """Tell everybody who waits for `topic`. A broker that is away is no error: the row is there."""
        with contextlib.suppress(redis.RedisError, OSError):
            self._client.publish(f"{_CHANNEL}:{topic}", b"")

    @contextlib.contextmanager
    def listen(self, topic: str) -> Iterator[Bell]:
        """Hear the calls for `topic` inside the block."""
        # redis-py has no annotation there
        subscription: redis.client.PubSub = self._client.pubsub(  # type: ignore[no-untyped-call]
            ignore_subscribe_messages=True
        )
        try:
            with contextlib.suppress(redis.RedisError, OSError):
                subscription.subscribe(f"{_CHANNEL}:{topic}")
            yield Bell(subscription)
        finally:
            with contextlib.suppress(redis.RedisError, OSError):
                subscription.close()

    @contextlib.asynccontextmanager
    async def listen_async(self, topic: str) -> AsyncIterator[AsyncBell]:
        """The same for a task with an event loop."""
        client = redis.asyncio.Redis.from_url(_url(self._broker_url), socket_timeout=None, socket_connect_timeout=1.0)
        subscription = client.pubsub(ignore_subscribe_messages=True)
        try:
            with contextlib.suppress(redis.RedisError, OSError):
                await subscription.subscribe(f"{_CHANNEL}:{topic}")
                # The answer to it; unread, it would end the first wait at once.
                await subscription.get_message(timeout=1.0)
            yield AsyncBell(subscription)
        finally:
            with contextlib.suppress(redis.RedisError, OSError):
                await subscription.aclose()  # type: ignore[no-untyped-call]  # redis-py has no annotation there
                await client.aclose()


class Bell:
    """What one waits on; `wait` returns at a call or when its time is over, and the caller looks at the database."""

    def __init__(self, subscription: redis.client.PubSub) -> None:
        self._subscription = subscription

    def wait(self, seconds: float) -> None:
        """Wait for a call, at most `seconds`."""

        try:
            self._subscription.get_message(timeout=seconds)
        except (redis.RedisError, OSError):
            # The broker is away: wait out the time, or the caller would spin.
            threading.Event().wait(seconds)


class AsyncBell:
    """`Bell` for a task with an event loop."""

    def __init__(self, subscription: redis.asyncio.client.PubSub) -> None:
        self._subscription = subscription

    async def wait(self, seconds: float) -> None:
        """Wait for a call, at most `seconds`."""

        try:
            await self._subscription.get_message(timeout=seconds)
        except (redis.RedisError, OSError, RuntimeError):
            await asyncio.sleep(seconds)
