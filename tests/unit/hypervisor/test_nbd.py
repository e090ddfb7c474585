"""Who does not answer as an NBD server is told of before any QEMU connects."""

from __future__ import annotations

import asyncio

import pytest

from haulier.errors import StepFailed
from haulier.hypervisor import nbd
from haulier.hypervisor.nbd import NbdServer


async def ask(said: bytes | None) -> None:
    """Ask a server that says this to whoever comes, and then waits; None for one that is not there."""
    over = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said or b"")
        await over.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        if said is None:
            server.close()
        try:
            await nbd.require_answer(NbdServer("127.0.0.1", port))
        finally:
            over.set()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (None, "Errno 111"),
        (b"", "says nothing"),
        (b"NBDMAGIC", "says nothing"),
        (b"HTTP/1.1 400 Bad Request", "no NBD server"),
        (b"NBDMAGICIHAVEOPT\0\3", "says nothing"),
    ],
)
def test_who_does_not_answer(monkeypatch: pytest.MonkeyPatch, said: bytes | None, why: str) -> None:
    monkeypatch.setattr(nbd, "_PATIENCE_S", 0.2)
    with pytest.raises(StepFailed, match=f"target_unreachable.*{why}"):
        asyncio.run(ask(said))


def test_who_answers() -> None:
    asyncio.run(ask(b"NBDMAGICIHAVEOPT\0\3" + bytes(20)))
