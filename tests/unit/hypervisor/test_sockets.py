"""Sockets that are made here for QEMU: without Nagle's delay, and with an error that says whose fault it was."""

from __future__ import annotations

import asyncio
import socket

import pytest

from haulier.errors import StepFailed
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.sockets import PORT_TAKEN, connect_to, listen_on


def has_no_delay(made: socket.socket) -> bool:
    return made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def listener_on_any_port(address: str = "127.0.0.1") -> tuple[socket.socket, NbdServer]:
    listener = listen_on(NbdServer(address, 0))
    return listener, NbdServer(address, listener.getsockname()[1])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_both_ends_send_at_once(address: str) -> None:
    listener, server = listener_on_any_port(address)
    with listener, asyncio.run(connect_to(server)) as ours, listener.accept()[0] as theirs:
        assert has_no_delay(ours)
        assert has_no_delay(theirs)
        assert ours.gettimeout() is None, "QEMU's own time-outs are the ones that count"
        ours.sendall(b"x")
        assert theirs.recv(1) == b"x"


def test_port_that_is_taken() -> None:
    listener, server = listener_on_any_port()
    with listener, pytest.raises(StepFailed) as caught:
        listen_on(server)
    assert caught.value.code == PORT_TAKEN
    assert str(server.port) in caught.value.problem.message


def test_port_can_be_used_again_at_once() -> None:
    """A connection that was just closed lingers; the next migration must not be refused for it."""
    listener, server = listener_on_any_port()
    with listener, asyncio.run(connect_to(server)), listener.accept()[0]:
        pass
    listen_on(server).close()


def test_address_of_another_host() -> None:
    with pytest.raises(StepFailed, match="cannot be listened on"):
        listen_on(NbdServer("192.0.2.1", 0))


def test_nobody_listens() -> None:
    listener, server = listener_on_any_port()
    listener.close()
    with pytest.raises(StepFailed, match="target_unreachable"):
        asyncio.run(connect_to(server))
