"""The greeting on the stream's port: who knows the key gets through, whoever else is there, and nobody else does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import pytest

from haulier.errors import StepFailed
from haulier.hypervisor import greeting
from haulier.hypervisor.greeting import accept, greet
from haulier.hypervisor.tls import greeting_key

KEY, OTHER = greeting_key(b"s" * 32, "7-1"), greeting_key(b"o" * 32, "7-1")
Source = Callable[[socket.socket], Awaitable[None]]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await work

    asyncio.run(bounded())


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname(), timeout=5)


async def come_through(listener: socket.socket, accepting: asyncio.Task[socket.socket]) -> None:
    """The source comes, and what it says then is heard by whoever gets the connection, from the first byte."""
    with connect(listener) as ours:
        await greet(ours, KEY)
        with await accepting as theirs:
            assert theirs.getblocking() and ours.getblocking()
            ours.sendall(b"\x16\x03\x01 and so on")
            assert theirs.recv(100) == b"\x16\x03\x01 and so on"
            theirs.sendall(b"heard")
            assert ours.recv(100) == b"heard"


def test_source_comes_through(listener: socket.socket) -> None:
    async def work() -> None:
        await come_through(listener, asyncio.create_task(accept(listener, KEY)))

    run(work())


def test_strangers_stand_in_nobodys_way(listener: socket.socket) -> None:
    """Before and beside the source: one who is silent, one who leaves, one who shouts, one who has another key."""

    async def work() -> None:
        accepting = asyncio.create_task(accept(listener, KEY))
        with ExitStack() as stack:
            silent, leaving, shouting, wrong, half = (stack.enter_context(connect(listener)) for _ in range(5))
            leaving.close()
            shouting.sendall(b"QEVM\0\0\0\3" + b"\0" * 65536)
            half.sendall(b"\0" * 31)
            with pytest.raises(StepFailed, match="target_not_proved"):
                await greet(wrong, OTHER)
            assert not accepting.done()
            await come_through(listener, accepting)
            silent.settimeout(5)
            assert len(silent.recv(100)) == 32, "a nonce"
            assert silent.recv(100) == b"", "and nothing else: it is sent away"

    run(work())


def test_answer_that_was_overheard_is_worth_nothing(listener: socket.socket) -> None:
    async def work() -> None:
        accepting = asyncio.create_task(accept(listener, KEY))
        with connect(listener) as thief:
            thief.setblocking(False)
            nonce = await asyncio.get_running_loop().sock_recv(thief, 32)
            other = bytes(32)
            assert nonce != other
            thief.sendall(greeting._code(KEY, b"source", other))
            assert await asyncio.get_running_loop().sock_recv(thief, 32) == b""
        assert not accepting.done()
        await come_through(listener, accepting)

    run(work())


@pytest.mark.parametrize("answers", [b"", b"\0" * 32, b"\0" * 64], ids=["leaves", "half", "nonsense"])
def test_source_does_not_take_a_stranger_for_the_target(listener: socket.socket, answers: bytes) -> None:
    """It would give it to its QEMU, which would wait for the stranger with the guest running in it."""

    async def work() -> None:
        with connect(listener) as ours:
            theirs, _ = listener.accept()
            theirs.sendall(answers)
            theirs.shutdown(socket.SHUT_WR)
            with theirs, pytest.raises(StepFailed, match="target_not_proved"):
                await greet(ours, KEY)

    run(work())


def test_target_that_says_nothing_is_not_waited_for(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "_PATIENCE_S", 0.05)

    async def work() -> None:
        with connect(listener) as ours, pytest.raises(StepFailed, match="does not answer"):
            await greet(ours, KEY)

    run(work())


def test_crowd_is_sent_away(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one descriptor for everybody who comes; and when their time is over there is room again."""
    monkeypatch.setattr(greeting, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(greeting, "_AT_ONCE", 3)

    async def work() -> None:
        accepting = asyncio.create_task(accept(listener, KEY))
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            crowd = [stack.enter_context(connect(listener)) for _ in range(5)]
            for each in crowd:
                each.setblocking(False)
            heard = [await loop.sock_recv(each, 100) for each in crowd]
            assert [len(words) for words in heard] == [32, 32, 32, 0, 0]
            assert await loop.sock_recv(crowd[0], 100) == b""
            await come_through(listener, accepting)

    run(work())


def test_cancelled_while_nobody_comes(listener: socket.socket) -> None:
    async def work() -> None:
        accepting = asyncio.create_task(accept(listener, KEY))
        with connect(listener) as silent:
            await asyncio.sleep(0)
            silent.setblocking(False)
            await asyncio.get_running_loop().sock_recv(silent, 32)
            accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await accepting
            assert await asyncio.get_running_loop().sock_recv(silent, 32) == b""

    run(work())


def test_without_a_key_the_first_is_taken(listener: socket.socket) -> None:
    async def work() -> None:
        with connect(listener) as ours, await accept(listener, None) as theirs:
            ours.sendall(b"x")
            assert theirs.recv(1) == b"x"

    run(work())


def test_keys_of_two_uses_differ() -> None:
    assert len({KEY, OTHER, greeting_key(b"s" * 32, "7-2")}) == 3
