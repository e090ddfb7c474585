"""A VM that does not run is moved as it is: everything it owns, byte for byte, and nothing is left where it was."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.faults import Faults
from tests.acceptance.guest import DISK, TPM, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack
from tests.acceptance.test_volumes import TWO_DISKS, add_replicas, make_found

OFFLINE = ("--offline",)


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return faults.settings


@pytest.fixture
def at_rest(guest: Guest) -> Guest:
    """It has run, and is stopped."""
    guest.stop()
    return guest


def contents(guest: Guest) -> dict[str, bytes]:
    """What lies in its volumes, byte for byte; a file's length may be rounded up to a sector."""
    return {device: path.read_bytes().rstrip(b"\0") for device, path in guest.volumes().items()}


def move(guest: Guest, target: str) -> None:
    """Migrate it, insist that it worked, that nothing has changed, and that its TPM was proved."""
    before = contents(guest)
    document = guest.migrate(target, *OFFLINE).done()
    assert document["state"] == "done", document
    assert (guest.row()["node"], guest.row()["state"]) == (target, "stopped")
    changed = [device for device, bytes_ in contents(guest).items() if bytes_ != before[device]]
    assert changed == []
    if tpm := document["tpm"]:
        assert tpm["digest_source"] == tpm["digest_target"]
        assert tpm["identity_same"] is not False
    assert {volume["device"] for volume in document["volumes"]} == set(before)
    assert_all_is_well(guest.stack)


def test_everything_crosses_and_the_guest_goes_on(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(*TWO_DISKS, start=False, define=False)
    make_found(stack, guest)
    guest.define()
    guest.start()
    guest.stop()
    subprocess.run(["qemu-img", "snapshot", "-c", "kept", guest.volumes()["virtio1"]], check=True)
    planned = stack.haulier("explain", guest.name, "--to", "beta").done()
    assert {volume["method"] for volume in planned["volumes"]} == {"copy", "tpm_sync"}
    assert (planned["refusals"], "move_memory" in planned["phases"]) == ([], False)
    move(guest, "beta")
    there = guest.volumes()["virtio1"]
    listed = subprocess.run(["qemu-img", "snapshot", "-l", there], check=True, capture_output=True, text=True).stdout
    assert "kept" in listed
    guest.start()
    assert_all_is_well(stack, guest)
    guest.stop()
    move(guest, "alpha")
    guest.start()
    assert_all_is_well(stack, guest)
    assert sorted(guest.volume_verdicts()) == ["virtio0", "virtio1"]


def test_vm_that_has_never_run(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    """It has no TPM yet, and gets one at its first start, wherever that is."""
    guest = make_guest(start=False)
    move(guest, "beta")
    (document, *_) = stack.haulier("migration", "list").done()
    assert document["tpm"] == {"digest_source": None, "digest_target": None, "identity_same": None}
    guest.start()
    assert_all_is_well(stack, guest)


def test_vm_with_replicas_of_everything(stack: Stack, at_rest: Guest) -> None:
    add_replicas(stack, at_rest, node="beta")
    move(at_rest, "beta")
    at_rest.start()
    assert_all_is_well(stack, at_rest)


@pytest.mark.parametrize(
    ("point", "end"),
    [
        ("copy_cold.run.begins", "alpha"),
        ("hand_over.proved", "alpha"),
        ("hand_over.committed", "beta"),
        ("retire_source.run.begins", "beta"),
    ],
)
def test_worker_is_killed(stack: Stack, faults: Faults, at_rest: Guest, point: str, end: str) -> None:
    side = "alpha" if point.startswith(("copy_cold", "retire_source")) else "beta"
    with faults.holding(point):
        command = at_rest.begin_migrate("beta", *OFFLINE)
        faults.wait_held(point)
        os.kill(stack.worker_pid(side), signal.SIGKILL)
    command.finish()
    assert at_rest.row()["node"] == end
    assert_all_is_well(stack)
    at_rest.start()
    assert_all_is_well(stack, at_rest)


def test_vm_that_runs_is_not_taken_for_one_at_rest(stack: Stack, guest: Guest) -> None:
    answer = guest.migrate("beta", *OFFLINE)
    assert (answer.status, answer.document["code"]) == (2, "vm_running")
    guest.wait_ticks()
    assert_all_is_well(stack, guest)


def test_nothing_starts_the_vm_meanwhile(stack: Stack, faults: Faults, at_rest: Guest) -> None:
    with faults.holding("copy_cold.run.ends"):
        command = at_rest.begin_migrate("beta", *OFFLINE)
        faults.wait_held("copy_cold.run.ends")
        answer = stack.haulier("vm", "start", at_rest.name)
        assert (answer.status, answer.document["code"]) == (2, "migration_open")
    command.finish()
    assert_all_is_well(stack)


def test_copy_that_is_not_what_was_sent(stack: Stack, faults: Faults, at_rest: Guest) -> None:
    """The source keeps everything, and the target's copies go."""
    with faults.holding("copy_cold.run.ends"):
        command = at_rest.begin_migrate("beta", *OFFLINE)
        faults.wait_held("copy_cold.run.ends")
        spoil(stack.images("beta") / at_rest.name / "tpm.raw")
    answer = command.finish()
    assert (answer.document["state"], answer.document["error"]["code"]) == ("undone", "tpm_copy_differs")
    assert_all_is_well(stack)
    at_rest.start()
    assert_all_is_well(stack, at_rest)


def spoil(state: Path) -> None:
    """Change a byte of the permanent state."""
    with state.open("r+b") as file:
        file.seek(300)
        byte = file.read(1)
        file.seek(300)
        file.write(bytes([byte[0] ^ 1]))


def test_cancelled(stack: Stack, faults: Faults, at_rest: Guest) -> None:
    with faults.holding("copy_cold.run.begins"):
        command = at_rest.begin_migrate("beta", *OFFLINE)
        faults.wait_held("copy_cold.run.begins")
        at_rest.cancel(command)
    assert (at_rest.row()["node"], at_rest.row()["state"]) == ("alpha", "stopped")
    assert_all_is_well(stack)
    at_rest.start()
    assert_all_is_well(stack, at_rest)


def test_vm_without_tpm(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(DISK)
    guest.stop()
    move(guest, "beta")
    guest.start()
    assert_all_is_well(stack, guest)


def test_vm_with_nothing_but_a_tpm(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(TPM)
    guest.stop()
    move(guest, "beta")
    guest.start()
    assert_all_is_well(stack, guest)
