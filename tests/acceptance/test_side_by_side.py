"""Several migrations at the same time: neither ports nor rows of theirs ever collide."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.acceptance.conftest import SCARCE_PORTS
from tests.acceptance.guest import Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack

# Of twelve ports a stranger has eight, so that most of the first choices are taken.
FREE = set(SCARCE_PORTS[2::3])


def test_two_vms_change_places(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    one, other = make_guest(node="alpha"), make_guest(node="beta")
    there, back = one.begin_migrate("beta"), other.begin_migrate("alpha")
    assert there.finish().done()["state"] == back.finish().done()["state"] == "done"
    assert (one.row()["node"], other.row()["node"]) == ("beta", "alpha")
    one.wait_ticks()
    other.wait_ticks()
    assert_all_is_well(stack, one, other)


def test_four_at_once_share_no_port(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    # Eight QEMUs without KVM: each is to need little.
    guests = [make_guest(append="dirty_mib_s=1 dirty_mib=4") for _ in range(4)]
    commands = [guest.begin_migrate("beta") for guest in guests]
    assert [command.finish().done()["state"] for command in commands] == ["done"] * 4
    for guest in guests:
        guest.wait_ticks()
    assert_all_is_well(stack, *guests)
    assert_ports_never_collided(stack)


@contextmanager
def listening(ports: set[int]) -> Iterator[None]:
    """Hold these ports as some other program of the host would."""
    with ExitStack() as sockets:
        for port in ports:
            listener = sockets.enter_context(socket.socket())
            # Else a connection of an earlier test that still waits for its end would stand in the way.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()
        yield


def assert_ports_never_collided(stack: Stack) -> None:
    """No two allocations of one port overlapped in time; each migration had its three."""
    rows = stack.table("allocation", kind="port")
    for row in rows:
        for other in rows:
            same = row["id"] < other["id"] and (row["address"], row["port"]) == (other["address"], other["port"])
            assert not same or row["freed_at"] <= other["taken_at"] or other["freed_at"] <= row["taken_at"]
    purposes = Counter((row["attempt_id"], row["purpose"]) for row in rows)
    assert {purpose for _attempt, purpose in purposes} == {"carrier", "disks", "stream"}


@pytest.fixture
def stranger() -> Iterator[set[int]]:
    taken = set(SCARCE_PORTS) - FREE
    with listening(taken):
        yield taken


def test_ports_of_a_stranger_are_left_alone(stack: Stack, stranger: set[int], make_guest: Callable[..., Guest]) -> None:
    guest = make_guest()
    guest.move("beta")
    guest.move("alpha")
    assert_all_is_well(stack, guest)
    assert_ports_never_collided(stack)
    used = {row["port"] for row in stack.table("allocation", kind="port")}
    assert used & stranger, "no port of the stranger was ever tried: this run proves nothing"
    assert used <= set(SCARCE_PORTS)


def test_range_that_is_used_up_undoes_the_migration(
    stack: Stack, stranger: set[int], make_guest: Callable[..., Guest]
) -> None:
    guest = make_guest()
    with listening(FREE):
        answer = guest.migrate("beta")
    assert answer.status == 1, answer
    assert answer.document["state"] == "undone"
    assert answer.document["error"]["code"] == "no_port"
    assert answer.document["error"]["hint"]
    guest.wait_ticks()
    assert_all_is_well(stack, guest)
