"""Of four nodes with twelve guests one is emptied by an alert, while workers are killed and a target fails, and another
one by a window; all come home.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Stacks
from tests.acceptance.faults import Faults
from tests.acceptance.guest import DISK, TPM, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until

NODES = ("alpha", "beta", "gamma", "delta")
# Twelve guests and the targets of those that move share two cores.
_PACE = "tick_us=20000 line_every=5 disk_every=2 tpm_every=5"
LEAVING, OTHERS = 6, 2
# Of those on alpha: it must not move, two that are never on one node, and one of which gamma has a replica.
PINNED, PAIR, REPLICATED = "e0", ("e1", "e2"), "e3"


@pytest.fixture(scope="module")
def four_nodes(stacks: Stacks, faults: Faults) -> Iterator[Stack]:
    with stacks.alone(NODES, faults.settings) as stack:
        yield stack


@pytest.fixture
def guests(four_nodes: Stack, image: Path) -> list[Guest]:
    """Six on alpha, two on each other node; every second one has a TPM."""
    boot = f'-kernel {image} -append "{_PACE}"'
    homes = ["alpha"] * LEAVING + [node for node in NODES[1:] for _ in range(OTHERS)]
    made = []
    for number, home in enumerate(homes):
        guest = Guest(four_nodes, f"e{number}", boot, (DISK, TPM) if number % 2 else (DISK,), 48)
        guest.define(home)
        guest.start()
        made.append(guest)
    return made


def left(stack: Stack, guests: list[Guest]) -> int:
    """How many of alpha's guests are elsewhere."""
    return sum(guest.row()["node"] != "alpha" for guest in guests[:LEAVING])


def wait_for_state(stack: Stack, state: str, *, number: int = 1) -> None:
    wait_until(
        f"evacuation {number} is {state}",
        lambda: bool(rows := stack.table("evacuation", id=number)) and rows[0]["state"] == state,
        deadline_s=400,
    )


def alert_fires(stack: Stack, token: str) -> list[str]:
    """Alertmanager delivers an alert about alpha; what becomes of it."""
    labels = {"alertname": "HostFails", "instance": "alpha:9100"}
    alert = {"status": "firing", "labels": labels, "startsAt": "2026-05-01T12:00:00Z", "fingerprint": "f00d"}
    status, document = stack.call("/api/v1/hooks/alertmanager", {"version": "4", "alerts": [alert]}, token=token)
    assert status == 202, document
    return [each["outcome"] for each in document["alerts"]]


def empty_by_window(stack: Stack, node: str, guests: list[Guest]) -> None:
    """A window begins at once, and empties its node; it is filled by hand."""
    stack.haulier("window", "add", node, "--at", "1s", "--duration", "1h").done()
    wait_for_state(stack, "drained", number=2)
    assert node not in {guest.row()["node"] for guest in guests}
    assert stack.haulier("evacuation", "show", "2").done()["cause"] == "window 1"
    assert stack.haulier("restore", node, "--wait").done()["state"] == "restored"


@pytest.mark.timeout(900)
def test_all_leave_and_come_home_and_lose_nothing(four_nodes: Stack, guests: list[Guest], faults: Faults) -> None:
    stack = four_nodes
    stack.haulier("vm", "set", PINNED, "--evacuation", "stay").done()
    stack.haulier("rule", "add", "pair", "apart", *PAIR).done()
    stack.haulier("replicate", REPLICATED, "--to", "gamma", "--wait").done()
    before = {guest.name: guest.row()["node"] for guest in guests}
    planned = stack.haulier("evacuate", "alpha", "--plan").done()
    assert [each["code"] for each in planned["blocked"]] == ["policy_stay"]
    targets = {each["vm"]: each["target"] for each in planned["plan"]}
    assert targets[PAIR[0]] != targets[PAIR[1]]
    assert targets[REPLICATED] == "gamma"
    assert {guest.name: guest.row()["node"] for guest in guests} == before
    stack.haulier("alert", "add", "HostFails", "evacuate").done()
    token = stack.haulier("token", "add", "alertmanager", "--scope", "hook").done()["token"]
    with faults.told("qemu", "beta", "open"):
        assert alert_fires(stack, token) == ["waiting"]
        for number in (1, 3):
            wait_until(f"{number} have left", lambda number=number: left(stack, guests) >= number, deadline_s=300)  # type: ignore[misc]
            stack.kill("control")
            stack.kill("beat")
        wait_for_state(stack, "blocked")
    assert alert_fires(stack, token) == ["done"], "what it repeats is the same alert"
    shown = stack.haulier("evacuation", "show", "1").document
    assert shown["cause"] == "alert 1"
    assert [(each["vm"], each["code"]) for each in shown["blocked"]] == [(PINNED, "policy_stay")]
    assert PINNED in shown["waiting_for"]
    assert "beta" not in {each["target"] for each in shown["plan"]}, "it failed, and was left for others"
    where = {guest.name: guest.row()["node"] for guest in guests}
    assert where[PAIR[0]] != where[PAIR[1]]
    assert where[PINNED] == "alpha"
    stack.haulier("vm", "set", PINNED, "--evacuation", "live").done()
    stack.haulier("evacuation", "resume", "1").done()
    wait_for_state(stack, "drained")
    assert left(stack, guests) == LEAVING
    assert stack.table("node", name="alpha")[0]["state"] == "drained"
    assert stack.haulier("migrate", "e11", "--to", "alpha").status == 2, "it takes nothing"
    answer = stack.haulier("restore", "alpha", "--wait")
    restored = answer.document
    assert (answer.status, restored["state"]) == (3, "restored"), "not all came back: somebody is to look"
    # The rule was made when both of the pair were on alpha.
    (away,) = restored["blocked"]
    assert (away["vm"] in PAIR, away["code"]) == (True, "rule")
    after = {guest.name: guest.row()["node"] for guest in guests}
    assert after == before | {away["vm"]: where[away["vm"]]}
    empty_by_window(stack, "delta", guests)
    assert {guest.name: guest.row()["node"] for guest in guests} == after
    for guest in guests:
        guest.wait_ticks(10)
    assert_all_is_well(stack, *guests)
