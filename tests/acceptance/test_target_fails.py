"""A target that fails on the way: the source runs on, the error has the target's own words, nothing is left over."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.acceptance.commands import Answer
from tests.acceptance.faults import Faults
from tests.acceptance.guest import RESTLESS, SLOW, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.kinds import WORDS
from tests.acceptance.stack import Stack


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return faults.settings


def assert_undone(stack: Stack, guest: Guest, answer: Answer, *, code: str, says: str) -> Any:
    """The migration ended as undone with this error, and the VM lives on alpha as if nothing had been."""
    assert answer.status == 1, answer
    document = answer.document
    assert document["state"] == "undone"
    assert (document["error"]["code"], says in document["error"]["message"]) == (code, True), document["errors"]
    assert document["error"]["hint"]
    guest.wait_ticks()
    row = guest.row()
    # This makes the guest stand still for a moment, and its row may follow.
    assert_all_is_well(stack, guest)
    assert (row["node"], row["epoch"], row["state"]) == ("alpha", 0, "running")
    assert {row["role"] for row in stack.table("tpm_ledger", vm_id=row["id"])} <= {"active", "destroyed"}
    return document


def test_qemu_dies_while_opening(stack: Stack, faults: Faults, guest: Guest) -> None:
    with faults.told("qemu", "beta", "open"):
        answer = guest.migrate("beta")
    assert_undone(stack, guest, answer, code="qemu_not_started", says=WORDS)


def test_qemu_refuses_to_load(stack: Stack, faults: Faults, guest: Guest) -> None:
    with faults.told("qemu", "beta", "load"):
        answer = guest.migrate("beta")
    assert_undone(stack, guest, answer, code="target_failed", says="ismatch: pc.ram")


def test_swtpm_dies_while_opening(stack: Stack, faults: Faults, guest: Guest) -> None:
    with faults.told("swtpm", "beta", "open"):
        answer = guest.migrate("beta")
    assert_undone(stack, guest, answer, code="swtpm_not_started", says=WORDS)


def test_qemu_is_killed_while_ram_moves(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(append=RESTLESS)
    command = guest.begin_migrate("beta")
    guest.wait_phase("move_memory", "running")
    guest.wait_stream()
    os.kill(guest.qemus()["beta"].pid, signal.SIGKILL)
    assert_undone(stack, guest, command.finish(), code="target_failed", says="")


def test_swtpm_is_killed_before_it_loads(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    """The failure comes at the very end, inside the pause: without return-path the source would have called it done."""
    guest = make_guest(append=SLOW)
    command = guest.begin_migrate("beta")
    guest.wait_phase("move_memory", "running")
    (swtpm,) = stack.processes("swtpm", node="beta", vm=guest.name)
    os.kill(swtpm.pid, signal.SIGKILL)
    assert_undone(stack, guest, command.finish(), code="target_failed", says="tpm")


def test_state_that_did_not_arrive_fails_the_proof(stack: Stack, faults: Faults, guest: Guest) -> None:
    """The target's swtpm wrote the stream's state elsewhere: its volume holds the older copy."""
    with faults.told("swtpm", "beta", "shadow"):
        answer = guest.migrate("beta")
    document = assert_undone(stack, guest, answer, code="tpm_proof_failed", says="not the source's")
    assert "committed" not in document["pause"] and "resumed" not in document["pause"]
    guest.move("beta")
    assert_all_is_well(stack, guest)


def test_cancel_before_the_hand_over(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(append=RESTLESS)
    command = guest.begin_migrate("beta")
    guest.wait_phase("move_memory", "running")
    guest.wait_stream()
    guest.cancel(command)
    guest.wait_ticks()
    assert_all_is_well(stack, guest)
    assert guest.row()["node"] == "alpha"


def test_guest_that_is_paused_on_the_way_arrives_paused(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    """Somebody pauses it by its own monitor while its RAM crosses; with that it settles."""
    guest = make_guest(append=RESTLESS)
    command = guest.begin_migrate("beta")
    guest.wait_phase("move_memory", "running")
    guest.wait_stream()
    guest.ask("stop")
    document = command.finish().done()
    assert (document["state"], document["downtime_ms"]) == ("done", None)
    assert (guest.row()["node"], guest.row()["state"]) == ("beta", "paused")
    assert guest.ask("query-status")["status"] == "paused"
    before = guest.last()
    assert_all_is_well(stack, guest)
    assert guest.last() == before
    guest.ask("cont")
    guest.wait_ticks()


def test_guest_that_was_paused_on_the_way_stays_paused_when_that_is_undone(
    stack: Stack, faults: Faults, make_guest: Callable[..., Guest]
) -> None:
    guest = make_guest(append=RESTLESS)
    with faults.holding("move_memory.paused"):
        command = guest.begin_migrate("beta")
        guest.wait_phase("move_memory", "running")
        guest.wait_stream()
        guest.ask("stop")
        faults.wait_held("move_memory.paused")
        guest.cancel(command)
    assert guest.ask("query-status")["status"] != "running"
    guest.ask("cont")
    guest.wait_ticks()
    assert_all_is_well(stack, guest)


def test_paused_guest_stays_paused_when_the_target_fails(stack: Stack, faults: Faults, guest: Guest) -> None:
    guest.ask("stop")
    with faults.told("qemu", "beta", "load"):
        answer = guest.migrate("beta")
    assert answer.document["state"] == "undone"
    assert guest.ask("query-status")["status"] == "paused"
    guest.ask("cont")
    guest.wait_ticks()
    assert_all_is_well(stack, guest)


@pytest.fixture(autouse=True)
def _no_word_left(faults: Faults) -> Iterator[None]:
    """A fault that a failed test left behind would fail the next."""
    yield
    assert not faults.left()
