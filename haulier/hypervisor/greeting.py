"""Before a QEMU sees a connection of the stream, the two workers prove to each other that they know the attempt's key.

QEMU does the handshake of TLS in its main loop and waits there for as long as the other side likes: a stranger who
connects to `migrate-incoming`'s port and says nothing stops the target's QEMU, monitor and all (7.2, measured; told in
QEMU's commit a1af605bd5 of 2020 for another case), and a source's QEMU that connects to such a target stands still with
its guest running in it. So the target's worker listens, not its QEMU, and only a connection that was proved is handed
over, on both sides. The stream itself is under TLS all the same.

The target sends a nonce, the source answers with a code over it, the target with another one; exactly that many bytes,
so that what follows on the connection is TLS from its first byte.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import socket
from typing import Any

from haulier.errors import StepFailed

_NONCE_BYTES = 32
_PATIENCE_S = 5.0
# Strangers who say nothing are borne for `_PATIENCE_S` each; so many at once, and then the next ones are sent away.
_AT_ONCE = 64


def _code(key: bytes, side: bytes, nonce: bytes) -> bytes:
    return hmac.digest(key, b"haulier greeting v1 " + side + nonce, hashlib.sha256)


async def greet(connection: socket.socket, key: bytes) -> None:
    """On the source: prove that we know the key, and insist that the target does.

    Raises StepFailed when it does not, or does not answer; the connection is for the caller to close then.
    """
    connection.setblocking(False)
    try:
        async with asyncio.timeout(2 * _PATIENCE_S):
            nonce = await _read(connection, _NONCE_BYTES)
            await asyncio.get_running_loop().sock_sendall(connection, _code(key, b"source", nonce))
            answer = await _read(connection, hashlib.sha256().digest_size)
        if not hmac.compare_digest(answer, _code(key, b"target", nonce)):
            raise _stranger("it does not know the key")
    except (OSError, TimeoutError) as error:
        raise _stranger(str(error) or "it does not answer") from error
    # QEMU wants to wait on it.
    connection.setblocking(True)


def _stranger(why: str) -> StepFailed:
    return StepFailed(
        "target_not_proved",
        f"what answers on the stream's port is not the target: {why}",
        "Have both nodes the same cluster secret (HAULIER_SECRET_FILE)?",
    )


async def accept(listener: socket.socket, key: bytes | None) -> socket.socket:
    """On the target: the first connection that proves to be the source's, whoever else connects meanwhile.

    Waits until it comes or the caller is cancelled. Without a key the first one is taken as it is.
    """
    listener.setblocking(False)
    loop, looks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    proved: asyncio.Future[socket.socket] = loop.create_future()

    async def look(connection: socket.socket) -> None:
        if not await _is_proved(connection, key):
            return
        if proved.done():
            connection.close()
        else:
            proved.set_result(connection)

    async def take_all() -> None:
        while True:
            connection, _ = await loop.sock_accept(listener)
            if len(looks) >= _AT_ONCE:
                connection.close()
                continue
            task = asyncio.create_task(look(connection))
            looks.add(task)
            task.add_done_callback(looks.discard)

    taking = asyncio.create_task(take_all())
    either: set[asyncio.Future[Any]] = {proved, taking}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return proved.result() if proved.done() else await _never(taking)
    finally:
        for task in (taking, *looks):
            task.cancel()
        await asyncio.gather(taking, *looks, return_exceptions=True)


async def _never(taking: asyncio.Task[None]) -> socket.socket:
    """Nobody listens any more: say why."""
    await taking
    raise AssertionError("it takes connections for ever")


async def _is_proved(connection: socket.socket, key: bytes | None) -> bool:
    """Whether it is the source's. It is ready for QEMU then; else it is closed."""
    proved = False
    try:
        connection.setblocking(False)
        proved = key is None or await _knows(connection, key)
        # QEMU wants to wait on it.
        connection.setblocking(True)
    finally:
        if not proved:
            connection.close()
    return proved


async def _knows(connection: socket.socket, key: bytes) -> bool:
    loop, nonce = asyncio.get_running_loop(), secrets.token_bytes(_NONCE_BYTES)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await loop.sock_sendall(connection, nonce)
            answer = await _read(connection, hashlib.sha256().digest_size)
            if not hmac.compare_digest(answer, _code(key, b"source", nonce)):
                return False
            await loop.sock_sendall(connection, _code(key, b"target", nonce))
    except (OSError, TimeoutError):
        return False
    return True


async def _read(connection: socket.socket, size: int) -> bytes:
    """Exactly so many bytes: what comes after them is for QEMU. Raises OSError when there are fewer."""
    loop, read = asyncio.get_running_loop(), b""
    while len(read) < size:
        more = await loop.sock_recv(connection, size - len(read))
        if not more:
            raise ConnectionResetError("it closed the connection")
        read += more
    return read
