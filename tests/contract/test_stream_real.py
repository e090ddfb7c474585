"""The stream between two QEMUs, with strangers on its port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

import pytest

from haulier.errors import StepFailed
from haulier.hypervisor import machine, stream
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.monitor import Monitor
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.sockets import listen_on
from haulier.hypervisor.tls import greeting_key
from tests.contract.real import OTHER_SECRET, SECRET, keys, qemu, run, server

pytestmark = pytest.mark.real

KEY, OTHER_KEY = greeting_key(SECRET, "1-1"), greeting_key(OTHER_SECRET, "1-1")


@asynccontextmanager
async def pair(make_place: Callable[[str], VmPlace], *, tls: bool = True) -> AsyncIterator[tuple[Monitor, Monitor]]:
    """A source and a target that waits; both know the key of the stream."""
    here, there = make_place("source"), make_place("target")
    async with qemu(here) as source, qemu(there, incoming=True) as target:
        for monitor, place, is_server in ((source, here, False), (target, there, True)):
            if tls:
                await stream.ensure_key(monitor, keys(place.run / "keys"), server=is_server)
        yield source, target


async def send(source: Monitor, to: NbdServer, key: bytes | None) -> None:
    await stream.send(source, server=to, key=key, max_bandwidth_bytes_per_s=0, downtime_limit_ms=300)


async def finish(source: Monitor, target: Monitor) -> None:
    """Bring the stream to its end."""
    await stream.wait_for_status(source, "pre-switchover")
    await stream.go_on(source)
    await stream.wait_for_status(source, "completed")
    assert (await stream.read_stream(target)).status == "completed"


@pytest.mark.parametrize("tls", [True, False])
def test_stream(make_place: Callable[[str], VmPlace], *, tls: bool) -> None:
    async def work() -> None:
        to, key = server(), KEY if tls else None
        async with pair(make_place, tls=tls) as (source, target):
            with listen_on(to) as listener:
                receiving = asyncio.create_task(stream.receive(target, listener, key=key))
                await send(source, to, key)
                await receiving
            await finish(source, target)

    run(work())


def test_no_stranger_stops_a_qemu(make_place: Callable[[str], VmPlace]) -> None:
    """A QEMU that listens itself is stopped by whoever connects and says nothing: greeting.py."""

    async def work() -> None:
        to = server()
        async with pair(make_place) as (source, target):
            with listen_on(to) as listener, ExitStack() as strangers:
                receiving = asyncio.create_task(stream.receive(target, listener, key=KEY))
                for words in (b"", b"QEVM\0\0\0\3" + b"\0" * 4096):
                    stranger = strangers.enter_context(socket.create_connection((to.address, to.port)))
                    stranger.sendall(words)
                with pytest.raises(StepFailed, match="target_not_proved"):
                    await send(source, to, OTHER_KEY)
                for monitor in (source, target):
                    async with asyncio.timeout(5):
                        await machine.status(monitor)
                await send(source, to, KEY)
                await receiving
                await finish(source, target)

    run(work())


def test_stream_itself_needs_the_key(make_place: Callable[[str], VmPlace]) -> None:
    """Whoever got past the greeting would meet TLS: the greeting's key is another one, and opens nothing."""

    async def work() -> None:
        to = server()
        async with pair(make_place) as (source, target):
            await stream.ensure_key(source, keys(make_place("stranger").run / "keys", OTHER_SECRET), server=False)
            with listen_on(to) as listener:
                receiving = asyncio.create_task(stream.receive(target, listener, key=KEY))
                await send(source, to, KEY)
                await receiving
            with pytest.raises(StepFailed, match="stream_failed"):
                await stream.wait_for_status(source, "pre-switchover")
            assert (await stream.read_stream(target)).transferred == 0

    run(work())
