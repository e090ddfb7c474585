"""TCP sockets that are made here and handed to QEMU, because of one option that QEMU 7.2 does not set: TCP_NODELAY.

Without it the second of two small answers of an NBD server waits for the other side's delayed acknowledgement, 40 ms,
and the guest's pause waits for that answer (measured: docs/performance.md). QEMU sets it itself on its NBD server's
sockets from 8.1 on. A socket that is accepted has the option of the one that listens.
"""

from __future__ import annotations

import asyncio
import socket

from haulier.errors import StepFailed
from haulier.hypervisor.monitor import Monitor
from haulier.hypervisor.nbd import NbdServer

PORT_TAKEN = "port_taken"
_CONNECT_S = 5.0


def listen_on(server: NbdServer) -> socket.socket:
    """A listening socket.

    Raises StepFailed `port_taken` when somebody else listens there; another port may be tried.
    """
    try:
        listener = socket.create_server((server.address, server.port), family=_family(server.address))
    except OSError as error:
        raise StepFailed(
            PORT_TAKEN, f"{server.address}:{server.port} cannot be listened on: {error.strerror}", "HAULIER_ADDRESS?"
        ) from error
    # What is accepted has the option too.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def connect_to(server: NbdServer) -> socket.socket:
    """A connection to the target. Raises StepFailed when nobody answers there.

    QEMU's own attempt would keep its main loop, and with it the guest, waiting for minutes over a link that is cut.
    """
    try:
        # In a thread, because whoever waits here has a lease to prolong.
        connection = await asyncio.to_thread(
            socket.create_connection, (server.address, server.port), timeout=_CONNECT_S
        )
    except OSError as error:
        raise StepFailed(
            "target_unreachable",
            f"no connection to {server.address}:{server.port}: {error}",
            "A firewall between them?",
        ) from error
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


async def hand_to_qemu(monitor: Monitor, made: socket.socket, name: str) -> None:
    """Give a socket to QEMU under a name; ours is closed. The name is used up by the command that takes it."""
    with made:
        await monitor.pass_fd(made.fileno(), name)
