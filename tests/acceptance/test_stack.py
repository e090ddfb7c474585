"""The stack itself: begins twice, ends without its VMs, and finds them again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from sqlalchemy import update

from haulier.cli.main import INTERRUPTED_STATUS
from models import Vm, VmState
from tests.acceptance.conftest import Stacks
from tests.acceptance.faults import Faults
from tests.acceptance.guest import RESTLESS, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.processes import processes_of
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return faults.settings


def pids(stack: Stack) -> set[int]:
    """All processes of the stack."""
    return {process.pid for process in processes_of(stack.state)}


def test_second_up_changes_nothing(stack: Stack, guest: Guest) -> None:
    before, running = stack.snapshot(), pids(stack)
    secret = (stack.state / "secret").read_bytes()
    assert stack.up()["nodes"] == ["alpha", "beta"]
    assert pids(stack) == running
    assert stack.snapshot() == before
    assert (stack.state / "secret").read_bytes() == secret
    assert stack.haulier("doctor").done()["ok"] is True


def test_vms_outlive_the_stack_and_are_found_again(stack: Stack, guest: Guest) -> None:
    stack.haulier("down").done()
    assert stack.haulier("down").done()["stopped"] is False
    left = processes_of(stack.state)
    assert sorted(process.program for process in left) == ["qemu-system-x86_64", "swtpm"]
    guest.wait_ticks()
    stack.up()
    assert guest.row()["state"] == "running"
    guest.move("beta")
    assert_all_is_well(stack, guest)


def test_programs_end_with_their_supervisor(stack: Stack, guest: Guest) -> None:
    """Else they would hold the nodes beside those that the next `up` starts."""
    os.kill(int((stack.state / "supervisord.pid").read_text()), signal.SIGKILL)
    left = ["qemu-system-x86_64", "swtpm"]
    wait_until("they end", lambda: sorted(each.program for each in processes_of(stack.state)) == left)
    stack.up()
    guest.wait_ticks()
    assert_all_is_well(stack, guest)


def test_guest_that_runs_although_its_row_says_stopped_is_taken_up(stack: Stack, guest: Guest) -> None:
    """As after a database that was restored from a copy, or a worker that died in the middle of a start."""
    with stack.database.write() as session:
        changes = {"state": VmState.STOPPED, "pid": None, "qmp": None}
        session.execute(update(Vm).where(Vm.name == guest.name).values(**changes))
    wait_until("the row says that it runs", lambda: guest.row()["state"] == "running")
    guest.wait_ticks()
    assert_all_is_well(stack, guest)


def test_qemu_that_hangs_does_not_make_its_node_silent(stack: Stack, guest: Guest) -> None:
    """The node that has such a guest is the one that somebody wants to empty."""
    pid = guest.qemus()["alpha"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        seen: set[object] = set()

        def four_beats() -> bool:
            assert stack.haulier("node", "show", "alpha").done()["worker"] == "alive"
            seen.add(stack.table("node", name="alpha")[0]["heartbeat_at"])
            return len(seen) > 4

        wait_until("beats of alpha", four_beats)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_down_in_the_middle_of_a_migration_leaves_nothing(
    stacks: Stacks, stack: Stack, make_guest: Callable[..., Guest]
) -> None:
    """`Stacks.remove` fails when one process has outlived `down --vms`."""
    guest = make_guest(append=RESTLESS)
    command = guest.begin_migrate("beta")
    guest.wait_phase("move_memory", "running")
    guest.wait_stream()
    assert sorted(guest.qemus()) == ["alpha", "beta"]
    assert command.abandon().status == INTERRUPTED_STATUS
    assert stack.haulier("down", "--vms").done()["vms"] == [guest.name]
    assert (guest.row()["state"], stack.table("migration")[-1]["state"]) == ("stopped", "cancelled")
    stacks.remove()


def test_vms_that_outlived_the_stack_are_ended_and_written_down(stacks: Stacks, stack: Stack, guest: Guest) -> None:
    stack.haulier("down").done()
    assert stack.haulier("down", "--vms").done() == {"stopped": False, "vms": [guest.name], "open": []}
    assert (guest.row()["state"], guest.row()["pid"]) == ("stopped", None)
    stacks.remove()
