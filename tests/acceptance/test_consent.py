"""A guest that no target takes while it runs is stopped for its move, once somebody consents, and runs again there."""

from __future__ import annotations

import pytest

from tests.acceptance.faults import Faults
from tests.acceptance.guest import Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return faults.settings


@pytest.mark.timeout(400)
def test_guest_is_stopped_moved_and_started_by_consent(stack: Stack, guest: Guest, faults: Faults) -> None:
    stack.haulier("vm", "set", guest.name, "--evacuation", "stop_by_consent").done()
    # No QEMU of beta takes a stream; one that is started there by itself runs.
    with faults.told("qemu", "beta", "open"):
        shown = stack.haulier("evacuate", "alpha", "--wait").document
        number = str(shown["id"])
        assert (shown["state"], guest.row()["node"], guest.row()["state"]) == ("blocked", "alpha", "running")
        assert f"haulier evacuation consent {number} {guest.name}" in shown["waiting_for"]
        boot = guest.wait_ticks().boot
        stack.haulier("evacuation", "consent", number, guest.name).done()
        wait_until("it is stopped", lambda: guest.row()["state"] == "stopped" and guest.row()["node"] == "alpha")
        stack.kill("control")
        stack.kill("beat")
        wait_until(
            "alpha is drained", lambda: stack.table("node", name="alpha")[0]["state"] == "drained", deadline_s=120
        )
    assert (guest.row()["node"], guest.row()["state"]) == ("beta", "running")
    assert guest.wait_ticks().boot != boot, "it was started anew"
    moved = stack.table("migration", vm_id=guest.row()["id"])[-1]
    assert (moved["state"], moved["offline"]) == ("done", True)
    assert_all_is_well(stack, guest)
    stack.haulier("restore", "alpha", "--wait").done()
    assert guest.row()["node"] == "alpha"
    guest.wait_ticks()
    assert_all_is_well(stack, guest)
