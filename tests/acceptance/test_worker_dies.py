"""A worker that is killed at a named point: the migration ends by itself, on one side, and nothing is lost or left."""

from __future__ import annotations

import os
import signal

import pytest

from tests.acceptance.faults import Faults
from tests.acceptance.guest import Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until

# Where it happens, whose worker is killed there, and where the guest runs in the end.
CELLS = [
    ("sync_tpm.run.ends", "alpha", "alpha"),
    ("reserve.run.ends", "beta", "alpha"),
    ("open_target.run.ends", "beta", "alpha"),
    ("mirror_disks.run.ends", "alpha", "alpha"),
    ("move_memory.paused", "alpha", "alpha"),
    ("move_memory.completed", "alpha", "alpha"),
    ("move_memory.noted", "alpha", "beta"),
    ("hand_over.loaded", "beta", "alpha"),
    ("hand_over.proved", "beta", "alpha"),
    ("hand_over.committed", "beta", "beta"),
    ("retire_source.run.begins", "alpha", "beta"),
]


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return faults.settings


@pytest.mark.parametrize(("point", "victim", "home"), CELLS)
def test_worker_is_killed(stack: Stack, faults: Faults, guest: Guest, point: str, victim: str, home: str) -> None:
    pid = stack.supervisor("getProcessInfo", f"node-{victim}")["pid"]
    with faults.holding(point):
        command = guest.begin_migrate("beta")
        faults.wait_held(point)
        os.kill(pid, signal.SIGKILL)
    answer = command.finish()
    assert answer.document["state"] == ("done" if home == "beta" else "undone"), answer
    wait_until("the guest runs", lambda: guest.ask("query-status")["status"] == "running")
    guest.wait_ticks()
    assert guest.row()["node"] == home
    # The row follows at the next heartbeat.
    wait_until("the row says so", lambda: guest.row()["state"] == "running")
    assert_all_is_well(stack, guest)
    wait_until("the worker is back", lambda: stack.beats(victim))
