"""A migration that takes too long, or does not move, is undone: the guest runs on at its source."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.faults import Faults
from tests.acceptance.guest import RESTLESS, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return faults.settings


# Its QEMU does not answer any more, while its host's kernel still takes what is sent: a link that is dead to us. The
# undo ends it.
FREEZE = signal.SIGSTOP


def assert_stays(stack: Stack, guest: Guest, document: Any, *, code: str) -> None:
    assert (document["state"], document["errors"][0]["code"]) == ("undone", code), document["errors"]
    assert guest.row()["node"] == "alpha"
    guest.wait_ticks()
    assert_all_is_well(stack, guest)


def test_migration_that_takes_too_long(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(append=RESTLESS)
    document = guest.begin_migrate("beta", "--timeout-s=3").finish().document
    assert_stays(stack, guest, document, code="timed_out")


def test_migration_that_does_not_move(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(append=RESTLESS)
    command = guest.begin_migrate("beta", "--stall-timeout-s=2")
    guest.wait_phase("move_memory", "running")
    guest.wait_stream()
    os.kill(guest.qemus()["beta"].pid, FREEZE)
    assert_stays(stack, guest, command.finish().document, code="stalled")


def test_guest_does_not_stand_still_for_a_target_that_does_not_answer(
    stack: Stack, faults: Faults, guest: Guest
) -> None:
    """QEMU waits for its mirrors with its main loop, and hears no command meanwhile but one out of band."""
    with faults.holding("move_memory.paused"):
        command = guest.begin_migrate("beta")
        faults.wait_held("move_memory.paused")
        os.kill(guest.qemus()["beta"].pid, FREEZE)
    assert_stays(stack, guest, command.finish().document, code="stalled")
