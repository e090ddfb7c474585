"""A group of three nodes is rolled through while its workers are killed: each is empty once, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Stacks
from tests.acceptance.guest import DISK, TPM, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until

NODES = ("alpha", "beta", "gamma")
_PACE = "tick_us=20000 line_every=5 disk_every=2 tpm_every=5"


@pytest.fixture(scope="module")
def three_nodes(stacks: Stacks) -> Iterator[Stack]:
    with stacks.alone(NODES, {}) as stack:
        yield stack


@pytest.fixture
def guests(three_nodes: Stack, image: Path) -> list[Guest]:
    """Two on alpha, one on each other node; all have a TPM."""
    boot = f'-kernel {image} -append "{_PACE}"'
    made = []
    for number, home in enumerate(("alpha", "alpha", "beta", "gamma")):
        guest = Guest(three_nodes, f"r{number}", boot, (DISK, TPM), 48)
        guest.define(home)
        guest.start()
        made.append(guest)
    return made


def evacuation_of(stack: Stack, node: str) -> dict[str, Any]:
    """Its only one, empty as long as there is none."""
    (row,) = stack.table("node", name=node)
    return next(iter(stack.table("evacuation", node_id=row["id"])), {})


@pytest.mark.timeout(600)
def test_each_node_is_empty_once_and_all_come_home(three_nodes: Stack, guests: list[Guest]) -> None:
    stack = three_nodes
    before = {guest.name: guest.row()["node"] for guest in guests}
    stack.haulier("group", "add", "rack", *NODES).done()
    roll = stack.begin("roll", "rack", "--hold", "2s", "--wait")
    for node in NODES:
        wait_until(f"{node} is emptied", lambda node=node: evacuation_of(stack, node), deadline_s=200)  # type: ignore[misc]
        stack.kill("control")
        stack.kill("beat")
    document = roll.finish().done()
    assert (document["state"], document["waiting_for"]) == ("done", "nothing: it is over")
    assert [(each["node"], each["state"]) for each in document["nodes"]] == [(node, "done") for node in NODES]
    assert {guest.name: guest.row()["node"] for guest in guests} == before
    assert {row["state"] for row in stack.table("node")} == {"online"}
    moved = stack.table("migration", state="done")
    assert {row["vm_id"] for row in moved} == {guest.row()["id"] for guest in guests}, "all have been away"
    for one, other in pairwise(evacuation_of(stack, node) for node in NODES):
        assert one["finished_at"] <= other["created_at"], "one after the other"
    for guest in guests:
        guest.wait_ticks(10)
    assert_all_is_well(stack, *guests)
