"""Plays the table on real parts. After each row: exactly one side has the VM, nothing is lost, nothing is left over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.commands import Answer
from tests.acceptance.faults import Faults
from tests.acceptance.guest import Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until
from tests.scenarios.configurations import CONFIGURATIONS, Configuration, storage_cfg
from tests.scenarios.happenings import HAPPENINGS, Scene
from tests.scenarios.table import TABLE, Ends, Scenario, Wish

_COMMANDS = {
    Wish.LIVE: ("migrate",),
    Wish.OFFLINE: ("migrate", "--offline"),
    Wish.MAPPED: ("migrate", "--storage-map", "only:local"),
    Wish.ONTO_LVM: ("migrate", "--storage-map", "local:thick"),
    Wish.ONTO_LVM_AT_REST: ("migrate", "--offline", "--storage-map", "local:thick"),
    Wish.ONTO_THIN: ("migrate", "--storage-map", "local:thin"),
    Wish.ONTO_THIN_AT_REST: ("migrate", "--offline", "--storage-map", "local:thin"),
    Wish.ONTO_DEVICES: ("migrate", "--storage-map", "local:devices"),
    Wish.ONTO_DEVICES_AT_REST: ("migrate", "--offline", "--storage-map", "local:devices"),
    Wish.OFF_LVM: ("migrate", "--storage-map", "thick:local"),
    Wish.OFF_LVM_AT_REST: ("migrate", "--offline", "--storage-map", "thick:local"),
    Wish.SYNC: ("replicate",),
    Wish.SYNC_AT_REST: ("replicate",),
}
_AT_REST = (Wish.SYNC_AT_REST, *(wish for wish, words in _COMMANDS.items() if "--offline" in words))
_STATUS = {Ends.THERE: 0, Ends.LOST_THERE: 0, Ends.COPIED: 0, Ends.HERE: 1, Ends.LOST_HERE: 1, Ends.REFUSED: 2}
_NODE = {Ends.THERE: "beta", Ends.LOST_THERE: "beta"}


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return faults.settings


def test_table_is_as_long_as_was_promised() -> None:
    assert len({str(scenario) for scenario in TABLE}) == len(TABLE) >= 60
    assert {scenario.configuration for scenario in TABLE} >= set(CONFIGURATIONS)
    assert {scenario.happening for scenario in TABLE} == set(HAPPENINGS)


@pytest.mark.parametrize("scenario", TABLE, ids=str)
def test_scenario(stack: Stack, faults: Faults, make_guest: Callable[..., Guest], scenario: Scenario) -> None:
    configuration = CONFIGURATIONS[scenario.configuration]
    faults.kinds.register(stack)
    guest = make_guest(*configuration.conf, define=False)
    prepare(stack, guest, configuration, at_rest=scenario.wish in _AT_REST)
    before = picture(stack, guest)
    answer = play(guest, faults, scenario)
    assert_ended(stack, guest, scenario, answer)
    if scenario.ends in (Ends.HERE, Ends.REFUSED, Ends.LOST_HERE):
        assert picture(stack, guest) == before, "its replica is what it was"
    else:
        replicated = configuration.replicated or scenario.ends is Ends.COPIED
        assert picture(stack, guest)["generation"] == before["generation"] + replicated
    goes_on(guest, configuration)
    assert_all_is_well(stack, *([guest] if configuration.ticks else []))
    assert devices_of(guest, faults) == owned_devices(guest), "no device is left over, and none is missing"


def devices_of(guest: Guest, faults: Faults) -> set[str]:
    """The logical volumes that were made for it on either node."""
    kinds = faults.kinds
    names = (f"{node}/{name}" for node in guest.stack.nodes for name in kinds.lvm.volumes(kinds.group(node)))
    return {name for name in names if f"{guest.name}-" in name}


def owned_devices(guest: Guest) -> set[str]:
    """Those that are its volumes."""
    nodes = {row["id"]: row["name"] for row in guest.stack.table("node")}
    storages = {row["id"]: row for row in guest.stack.table("storage") if row["kind"].startswith("lvm")}
    rows = guest.stack.table("volume", vm_id=guest.row()["id"])
    return {
        f"{nodes[storages[row['storage_id']]['node_id']]}/{row['name']}"
        for row in rows
        if row["storage_id"] in storages
    }


def prepare(stack: Stack, guest: Guest, configuration: Configuration, *, at_rest: bool) -> None:
    """Define it, have it run once, and have its replica made; a guest `at_rest` is stopped then."""
    configuration.found(guest)
    storages = ["--storages", str(storage_cfg(stack))] if storage_cfg(stack).exists() else []
    guest.define("alpha", *storages)
    configuration.ready(guest)
    start(guest, configuration)
    if configuration.replicated:
        stack.haulier("replicate", guest.name, "--to", "beta", "--wait").done()
    if at_rest:
        guest.stop()


def start(guest: Guest, configuration: Configuration) -> None:
    if configuration.ticks:
        guest.start()
    else:
        guest.stack.haulier("vm", "start", guest.name).done()


def picture(stack: Stack, guest: Guest) -> dict[str, Any]:
    """The VM's replica: its generation and what is in its files, byte for byte."""
    rows = stack.table("replication", vm_id=guest.row()["id"])
    if not rows or not rows[0]["generation"]:
        return {"generation": 0, "files": {}}
    storages = {row["id"]: Path(row["path"]) for row in stack.table("storage")}
    files = {}
    for row in stack.table("replica", replication_id=rows[0]["id"]):
        path = storages[row["storage_id"]] / row["name"]
        files[str(path)] = path.read_bytes()
    return {"generation": rows[0]["generation"], "files": files}


def play(guest: Guest, faults: Faults, scenario: Scenario) -> Answer:
    """Ask for it, and let happen what the row says."""
    command, *words = _COMMANDS[scenario.wish]
    happening = HAPPENINGS[scenario.happening]
    return happening(
        Scene(guest, faults), lambda: guest.stack.begin(command, guest.name, "--to", "beta", "--wait", *words)
    )


def assert_ended(stack: Stack, guest: Guest, scenario: Scenario, answer: Answer) -> None:
    """The command's exit status and code, and the VM's row."""
    assert answer.status == _STATUS[scenario.ends], answer
    if scenario.code is not None:
        document = answer.document
        codes = {error["code"] for error in document.get("errors") or [document.get("error") or document]}
        assert scenario.code in codes, answer
    lost = scenario.ends in (Ends.LOST_THERE, Ends.LOST_HERE)
    state = "lost" if lost else "stopped" if scenario.wish in _AT_REST else "running"
    wait_until(f"{guest.name} is {state}", lambda: guest.row()["state"] == state)
    assert guest.row()["node"] == _NODE.get(scenario.ends, "alpha")
    if lost:
        # Its worker tidies up after it.
        wait_until("nothing runs", lambda: not guest.qemus())
    assert_all_is_well(stack)


def goes_on(guest: Guest, configuration: Configuration) -> None:
    """The guest runs on, or can be started where it is."""
    if guest.row()["state"] != "running":
        start(guest, configuration)
    elif configuration.ticks:
        guest.wait_ticks()
