"""The first words of NBD, spoken by ourselves: is there a server that answers? Everything else about NBD is QEMU's.

QEMU connects to a server with its main loop standing still, and its guest with it: over a link that is cut for two
minutes (7.2). So somebody else asks first.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass

from haulier.errors import StepFailed

_PATIENCE_S = 5.0
_GREETING = b"NBDMAGICIHAVEOPT"
# Fixed newstyle, then NBD_OPT_ABORT without data: a server that is left without it writes an error into its log.
_GOOD_BYE = struct.pack(">I8sII", 1, b"IHAVEOPT", 2, 0)
_FLAGS_BYTES, _REPLY_BYTES = 2, 20


@dataclass(frozen=True, slots=True)
class NbdServer:
    """Where a server listens."""

    address: str
    port: int


async def require_answer(server: NbdServer) -> None:
    """Return when an NBD server has answered there. Raises StepFailed `target_unreachable` when none does."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(server.address, server.port)
            try:
                greeting = await reader.readexactly(len(_GREETING) + _FLAGS_BYTES)
                if not greeting.startswith(_GREETING):
                    raise ConnectionError("that is no NBD server")
                writer.write(_GOOD_BYE)
                await reader.readexactly(_REPLY_BYTES)
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError) as error:
        raise StepFailed(
            "target_unreachable",
            f"no NBD server answers on {server.address}:{server.port}: {str(error) or 'it says nothing'}",
            "A firewall between them?",
        ) from error
