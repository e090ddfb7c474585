"""A replica is always a whole generation: what the guest had on its disks and in its TPM at one moment."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.commands import Answer
from tests.acceptance.faults import Faults
from tests.acceptance.guest import DISK, SLOW, TPM, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until

QCOW2 = "virtio1: local:{name}/disk1.qcow2,size=64M,format=qcow2"
UNUSED = "unused0: local:{name}/old.raw,size=1M"


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return faults.settings


def replicate(guest: Guest, *words: str) -> Any:
    """Bring the replica up to date, and insist that it worked."""
    document = ask(guest, *words).done()
    assert document["state"] == "current", document
    return document


def ask(guest: Guest, *words: str) -> Answer:
    return guest.stack.haulier("replicate", guest.name, "--to", "beta", "--wait", *words)


def listed(stack: Stack, guest: Guest) -> Any:
    (document,) = [each for each in stack.haulier("replication", "list").done() if each["vm"] == guest.name]
    return document


def wait_for_generation(stack: Stack, guest: Guest, generation: int) -> None:
    wait_until(f"generation {generation}", lambda: listed(stack, guest)["generation"] >= generation, deadline_s=60)


def transfers(stack: Stack, sync: int) -> dict[str, int]:
    """How many bytes of each volume a sync has sent."""
    (attempt,) = stack.table("attempt", migration_id=sync)
    devices = {row["id"]: row["device"] for row in stack.table("volume")}
    rows = stack.table("volume_transfer", attempt_id=attempt["id"])
    return {devices[row["volume_id"]]: row["bytes"] for row in rows}


def test_second_generation_sends_what_changed(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(DISK, QCOW2, UNUSED, TPM)
    first = replicate(guest)
    assert first["generation"] == 1
    assert transfers(stack, first["sync"])["unused0"] == 1 << 20
    guest.wait_ticks()
    second = replicate(guest)
    sent = transfers(stack, second["sync"])
    assert second["generation"] == 2
    assert sent["unused0"] == 0, "it looks as it did"
    assert 0 < sent["virtio0"] <= 4 << 20
    assert 0 < sent["virtio1"] <= 4 << 20
    assert_all_is_well(stack, guest)


def test_vm_that_does_not_run(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    """It never ran, it ran meanwhile, nothing happened meanwhile."""
    guest = make_guest(DISK, QCOW2, TPM, start=False)
    replicate(guest)
    assert_all_is_well(stack)
    guest.start()
    replicate(guest)
    guest.wait_ticks()
    guest.stop()
    third = replicate(guest)
    sent = transfers(stack, third["sync"])
    assert sent["virtio1"] <= 4 << 20, "the bitmap is in the image"
    assert 0 < sent["virtio0"] <= 4 << 20, "by comparison"
    assert_all_is_well(stack)
    for device, replica in replicas(stack, guest).items():
        assert replica == guest.volumes()[device].read_bytes().rstrip(b"\0"), device
    fourth = replicate(guest)
    sent = transfers(stack, fourth["sync"])
    assert (fourth["generation"], sent["virtio0"], sent["virtio1"]) == (4, 0, 0)


def test_qemu_of_a_replicated_vm_was_killed(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    """Its bitmaps have missed writes, and say so: what differs is found by comparison, and nothing else is sent."""
    guest = make_guest(DISK, QCOW2, TPM)
    replicate(guest)
    guest.wait_ticks()
    os.kill(guest.qemus()["alpha"].pid, signal.SIGKILL)
    wait_until("stopped", lambda: guest.row()["state"] in ("stopped", "lost"))
    third = replicate(guest)
    sent = transfers(stack, third["sync"])
    assert 0 < sent["virtio0"] <= 4 << 20
    assert 0 < sent["virtio1"] <= 4 << 20
    for device, replica in replicas(stack, guest).items():
        assert replica == guest.volumes()[device].read_bytes().rstrip(b"\0"), device
    compare_images(stack, guest, "virtio1")
    assert_all_is_well(stack)


@pytest.mark.parametrize(
    ("point", "side"), [("comparing.read", "beta"), ("comparing.fetched", "alpha"), ("comparing.marked", "alpha")]
)
def test_worker_is_killed_while_it_compares(
    stack: Stack, faults: Faults, make_guest: Callable[..., Guest], point: str, side: str
) -> None:
    guest = make_guest(DISK, TPM)
    replicate(guest)
    guest.wait_ticks()
    guest.stop()
    before = replicas(stack, guest)
    with faults.holding(point):
        command = stack.begin("replicate", guest.name, "--to", "beta", "--wait")
        faults.wait_held(point)
        os.kill(stack.worker_pid(side), signal.SIGKILL)
    assert command.finish().status == 1
    assert replicas(stack, guest) == before
    assert_all_is_well(stack)
    again = replicate(guest)
    assert 0 < transfers(stack, again["sync"])["virtio0"] <= 4 << 20
    assert replicas(stack, guest)["virtio0"] == bytes_of(guest, "virtio0")
    assert_all_is_well(stack)


def test_replica_that_cannot_be_compared_is_sent_as_a_whole(
    stack: Stack, faults: Faults, make_guest: Callable[..., Guest]
) -> None:
    """Where its digests would go there is something else."""
    guest = make_guest(DISK, TPM)
    replicate(guest)
    guest.stop()
    (volume,) = stack.table("volume", vm_id=guest.row()["id"], device="virtio0")
    in_the_way = stack.state / "nodes" / "beta" / "vms" / guest.name / f"volume{volume['id']}.digests"
    with faults.holding("reserve.run.begins"):
        command = stack.begin("replicate", guest.name, "--to", "beta", "--wait")
        faults.wait_held("reserve.run.begins")
        in_the_way.symlink_to("/dev/full")
    document = command.finish().done()
    assert transfers(stack, document["sync"])["virtio0"] == 64 << 20
    assert replicas(stack, guest)["virtio0"] == bytes_of(guest, "virtio0")
    assert_all_is_well(stack)


def compare_images(stack: Stack, guest: Guest, device: str) -> None:
    """A qcow2 and its replica hold the same, as their guest sees them."""
    (volume,) = stack.table("volume", vm_id=guest.row()["id"], device=device)
    (replica,) = stack.table("replica", volume_id=volume["id"])
    (storage,) = stack.table("storage", id=replica["storage_id"])
    words = ["qemu-img", "compare", str(guest.volumes()[device]), str(Path(storage["path"], replica["name"]))]
    subprocess.run(words, check=True, capture_output=True, timeout=60)


def bytes_of(guest: Guest, device: str) -> bytes:
    """What lies in a raw volume, without the zeroes at its end."""
    return guest.volumes()[device].read_bytes().rstrip(b"\0")


def replicas(stack: Stack, guest: Guest) -> dict[str, bytes]:
    """What lies in the replicas of raw volumes, byte for byte, without the zeroes at their ends."""
    found = {}
    for volume in stack.table("volume", vm_id=guest.row()["id"], format="raw"):
        (replica,) = stack.table("replica", volume_id=volume["id"])
        (storage,) = stack.table("storage", id=replica["storage_id"])
        found[volume["device"]] = Path(storage["path"], replica["name"]).read_bytes().rstrip(b"\0")
    return found


def test_last_sync_of_a_vm_that_does_not_run(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    """There, and back onto what it has left, with what was written since; a raw disk has no room for a bitmap, and is
    compared.
    """
    guest = make_guest(DISK, QCOW2, UNUSED, TPM)
    replicate(guest)
    guest.wait_ticks()
    guest.stop()
    before = {device: bytes_of(guest, device) for device in ("virtio0", "unused0", "tpmstate0")}
    for target in ("beta", "alpha"):
        document = guest.migrate(target, "--offline").done()
        sent = {each["device"]: (each["method"], each["bytes"]) for each in document["volumes"]}
        assert sent["virtio1"][0] == sent["virtio0"][0] == "delta"
        assert sent["virtio1"][1] <= 4 << 20
        assert sent["virtio0"][1] <= 4 << 20
        assert sent["unused0"] == ("copy", 0), "the replica's file has become it"
        assert document["tpm"]["identity_same"]
        assert_all_is_well(stack)
        assert {device: bytes_of(guest, device) for device in before} == before
    assert sent["virtio0"][1] == sent["virtio1"][1] == 0, "nothing was written since it came"
    guest.start()
    assert_all_is_well(stack, guest)
    guest.wait_ticks()
    document = replicate(guest)
    assert 0 < transfers(stack, document["sync"])["virtio1"] <= 4 << 20
    assert_all_is_well(stack, guest)


@pytest.mark.parametrize(
    ("point", "side", "end"),
    [
        ("reserve.run.ends", "beta", "undone"),
        ("comparing.marked", "alpha", "undone"),
        ("copy_cold.run.ends", "alpha", "undone"),
        ("hand_over.proved", "beta", "undone"),
        ("hand_over.committed", "beta", "done"),
        ("take_generation.merged", "beta", "done"),
        ("hand_over.recording", "beta", "done"),
        ("retire_source.run.begins", "alpha", "done"),
    ],
)
def test_worker_is_killed_in_the_last_sync(
    stack: Stack, faults: Faults, make_guest: Callable[..., Guest], point: str, side: str, end: str
) -> None:
    """Undone, the replica is what it was; handed over, the overlay is merged by whoever comes."""
    guest = make_guest(DISK, QCOW2, TPM)
    replicate(guest)
    guest.wait_ticks()
    guest.stop()
    before, content = replicas(stack, guest), guest.volumes()["virtio0"].read_bytes()
    with faults.holding(point):
        command = guest.begin_migrate("beta", "--offline")
        faults.wait_held(point)
        os.kill(stack.worker_pid(side), signal.SIGKILL)
    answer = command.finish()
    assert answer.document["state"] == end, answer
    assert_all_is_well(stack)
    if end == "undone":
        assert replicas(stack, guest) == before
    assert guest.volumes()["virtio0"].read_bytes() == content
    guest.start()
    assert_all_is_well(stack, guest)


@pytest.mark.parametrize(
    ("point", "side", "generation"),
    [
        ("reserve.run.ends", "beta", 1),
        ("send_generation.run.begins", "alpha", 1),
        ("send_generation.begun", "alpha", 1),
        ("send_generation.run.ends", "alpha", 1),
        ("take_generation.run.begins", "beta", 1),
        ("take_generation.committed", "beta", 2),
        ("take_generation.merged", "beta", 2),
        ("take_generation.run.ends", "beta", 2),
    ],
)
def test_worker_is_killed(
    stack: Stack, faults: Faults, make_guest: Callable[..., Guest], point: str, side: str, generation: int
) -> None:
    """The replica is the last generation, or the new one, and the next sync makes up for it."""
    guest = make_guest(DISK, QCOW2, TPM)
    replicate(guest)
    with faults.holding(point):
        command = stack.begin("replicate", guest.name, "--to", "beta", "--wait")
        faults.wait_held(point)
        os.kill(stack.worker_pid(side), signal.SIGKILL)
    answer = command.finish()
    assert answer.status == (0 if generation == 2 else 1), answer
    assert listed(stack, guest)["generation"] == generation
    assert listed(stack, guest)["state"] == ("current" if generation == 2 else "failed")
    assert_all_is_well(stack, guest)
    again = replicate(guest)
    assert again["generation"] == generation + 1
    assert transfers(stack, again["sync"])["virtio0"] <= 4 << 20, "nothing was forgotten, and not all is sent again"
    assert_all_is_well(stack, guest)


@pytest.mark.parametrize("wish", [("vm", "stop", "--now"), ("migrate", "--to", "beta")])
def test_sync_makes_way(stack: Stack, faults: Faults, make_guest: Callable[..., Guest], wish: tuple[str, ...]) -> None:
    guest = make_guest(DISK, TPM)
    replicate(guest)
    with faults.holding("send_generation.begun"):
        sync = stack.begin("replicate", guest.name, "--to", "beta", "--wait")
        faults.wait_held("send_generation.begun")
        command, *words = wish
        wanted = [command, words.pop(0)] if command == "vm" else [command]
        answer = stack.haulier(*wanted, guest.name, *words, *(["--wait"] if command == "migrate" else []))
    answer.done()
    assert sync.finish().status == 1
    assert guest.row()["node"] == ("beta" if command == "migrate" else "alpha")
    assert_all_is_well(stack)


def test_beat_brings_it_up_to_date(stack: Stack, guest: Guest) -> None:
    """Again and again; and it goes on after a failure, which it tells."""
    replicate(guest, "--every", "2s")
    wait_for_generation(stack, guest, 3)
    stack.supervisor("stopProcess", "node-beta")
    try:
        wait_until("failure", lambda: listed(stack, guest)["failures"] > 0, deadline_s=60)
        told = [row for row in stack.table("event", kind="replication.failed") if row["vm"] == guest.name]
        assert told[-1]["data"]["problem"]["code"] == "node_silent"
    finally:
        stack.start_worker("beta")
    wait_for_generation(stack, guest, listed(stack, guest)["generation"] + 1)
    (before,) = stack.table("replication", vm_id=guest.row()["id"])
    stack.haulier("replication", "end", guest.name, "--to", "beta").done()
    assert guest.name not in {each["vm"] for each in stack.haulier("replication", "list").done()}
    assert stack.table("replica", replication_id=before["id"]) == []
    assert_all_is_well(stack, guest)


def test_migration_onto_the_replica_sends_the_difference(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    """There and back again; each time replication runs the other way round, without sending all."""
    guest = make_guest(DISK, QCOW2, UNUSED, TPM)
    guest.volumes()["unused0"].write_bytes(b"u" * (1 << 20))
    unused = bytes_of(guest, "unused0")
    replicate(guest)
    guest.wait_ticks()
    planned = stack.haulier("explain", guest.name, "--to", "beta").done()
    methods = {volume["device"]: volume["method"] for volume in planned["volumes"]}
    assert methods == {"virtio0": "delta", "virtio1": "delta", "unused0": "copy", "tpmstate0": "tpm_sync"}
    for target, source in (("beta", "alpha"), ("alpha", "beta"), ("beta", "alpha")):
        document = guest.move(target)
        sent = {volume["device"]: volume["bytes"] for volume in document["volumes"]}
        assert sent["virtio0"] <= 4 << 20 and sent["virtio1"] <= 4 << 20
        assert sent["unused0"] == 0, "the replica's file has become it"
        assert bytes_of(guest, "unused0") == unused
        assert_all_is_well(stack, guest)
        turned = listed(stack, guest)
        assert (turned["source"], turned["target"], turned["state"]) == (target, source, "current")
        guest.wait_ticks()
        again = stack.haulier("replicate", guest.name, "--to", source, "--wait").done()
        assert again["generation"] == turned["generation"] + 1
        assert transfers(stack, again["sync"])["virtio0"] <= 4 << 20
        assert transfers(stack, again["sync"])["virtio1"] <= 4 << 20
        assert transfers(stack, again["sync"])["unused0"] == 0
        assert_all_is_well(stack, guest)


def test_unused_volume_that_was_changed_is_copied(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(DISK, UNUSED, TPM)
    replicate(guest)
    guest.volumes()["unused0"].write_bytes(b"n" * (1 << 20))
    document = guest.move("beta")
    assert {each["device"]: each["bytes"] for each in document["volumes"]}["unused0"] == 1 << 20
    assert bytes_of(guest, "unused0") == b"n" * (1 << 20)
    assert_all_is_well(stack, guest)


@pytest.mark.parametrize(
    ("point", "side", "end"),
    [
        ("open_target.run.ends", "beta", "alpha"),
        ("mirror_disks.rounds_sent", "alpha", "alpha"),
        ("mirror_disks.standing", "alpha", "alpha"),
        ("move_memory.paused", "alpha", "alpha"),
        ("hand_over.proved", "beta", "alpha"),
        ("hand_over.committed", "beta", "beta"),
        ("hand_over.merge_ready", "beta", "beta"),
        ("hand_over.on_bases", "beta", "beta"),
        ("hand_over.merged", "beta", "beta"),
        ("retire_source.run.begins", "alpha", "beta"),
        ("retire_source.run.ends", "alpha", "beta"),
    ],
)
def test_worker_is_killed_in_a_migration_onto_the_replica(
    stack: Stack, faults: Faults, make_guest: Callable[..., Guest], point: str, side: str, end: str
) -> None:
    """Undone, the replica is what it was, of all volumes; done, the VM is whole and has one where it came from."""
    guest = make_guest(DISK, QCOW2, UNUSED, TPM)
    replicate(guest)
    before = replicas(stack, guest)
    with faults.holding(point):
        command = guest.begin_migrate("beta")
        faults.wait_held(point)
        os.kill(stack.worker_pid(side), signal.SIGKILL)
    command.finish()
    assert guest.row()["node"] == end
    assert_all_is_well(stack, guest)
    if end == "alpha":
        assert replicas(stack, guest) == before
    guest.wait_ticks()
    other = "beta" if end == "alpha" else "alpha"
    again = stack.haulier("replicate", guest.name, "--to", other, "--wait").done()
    assert again["state"] == "current"
    assert transfers(stack, again["sync"])["virtio0"] <= 4 << 20
    assert_all_is_well(stack, guest)


def test_no_more_than_the_difference_is_sent(stack: Stack, guest: Guest) -> None:
    replicate(guest)
    guest.wait_ticks()
    guest.ask("stop")
    dirty = sum(
        bitmap["count"]
        for node in guest.ask("query-named-block-nodes", flat=True)
        for bitmap in node.get("dirty-bitmaps", ())
        if bitmap["name"].endswith("-g1")
    )
    document = guest.migrate("beta").done()
    (sent,) = [volume["bytes"] for volume in document["volumes"] if volume["device"] == "virtio0"]
    assert 0 < sent <= 1.1 * dirty
    assert guest.row()["state"] == "paused"
    guest.ask("cont")
    guest.wait_ticks()
    assert_all_is_well(stack, guest)


@pytest.mark.parametrize("point", ["hand_over.merge_ready", "hand_over.on_bases", "hand_over.merged"])
def test_target_dies_while_it_merges(
    stack: Stack, faults: Faults, make_guest: Callable[..., Guest], point: str
) -> None:
    """The VM is lost there, with its newest disks: base and overlay together, or the base alone."""
    guest = make_guest(DISK, TPM)
    replicate(guest)
    with faults.holding(point):
        command = guest.begin_migrate("beta")
        faults.wait_held(point)
        os.kill(guest.qemus()["beta"].pid, signal.SIGKILL)
    command.finish()
    wait_until("lost", lambda: guest.row()["state"] == "lost")
    assert guest.row()["node"] == "beta"
    assert_all_is_well(stack)
    guest.start()
    assert_all_is_well(stack, guest)


def test_worker_and_qemu_die_after_the_merge(stack: Stack, faults: Faults, guest: Guest) -> None:
    """What the guest wrote on the base alone is not undone by merging once more."""
    replicate(guest)
    with faults.holding("hand_over.merged"):
        command = guest.begin_migrate("beta")
        faults.wait_held("hand_over.merged")
        guest.wait_ticks(250)
        os.kill(stack.worker_pid("beta"), signal.SIGKILL)
        os.kill(guest.qemus()["beta"].pid, signal.SIGKILL)
    command.finish()
    wait_until("lost", lambda: guest.row()["state"] == "lost")
    assert_all_is_well(stack)
    guest.start()
    assert_all_is_well(stack, guest)


def test_carrier_that_died_before_all_was_written(stack: Stack, faults: Faults, guest: Guest) -> None:
    """What it had in memory is not in the generation, so that there is none."""
    replicate(guest)
    before = replicas(stack, guest)
    with faults.holding("take_generation.run.begins"):
        command = stack.begin("replicate", guest.name, "--to", "beta", "--wait")
        faults.wait_held("take_generation.run.begins")
        (carrier,) = stack.processes("qemu-storage-daemon", node="beta", vm=guest.name)
        os.kill(carrier.pid, signal.SIGKILL)
    answer = command.finish()
    assert (answer.status, answer.document["error"]["code"]) == (1, "carrier_gone")
    assert replicas(stack, guest) == before
    assert_all_is_well(stack, guest)


def test_refusals(stack: Stack, guest: Guest) -> None:
    before = stack.snapshot()
    for words, code in (
        (("--to", "alpha"), "already_there"),
        (("--to", "nowhere"), "unknown_node"),
        (("--to", "beta", "--every", "often"), "bad_interval"),
        (("--to", "beta", "--every", "0s"), "bad_every"),
    ):
        answer = stack.haulier("replicate", guest.name, *words)
        assert (answer.status, answer.document["code"]) == (2, code)
    answer = stack.haulier("replication", "end", guest.name, "--to", "beta")
    assert (answer.status, answer.document["code"]) == (2, "no_replication")
    assert stack.snapshot() == before


def test_sync_that_is_asked_for_twice_is_one(stack: Stack, faults: Faults, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(DISK, TPM, append=SLOW)
    with faults.holding("send_generation.begun"):
        first = stack.begin("replicate", guest.name, "--to", "beta", "--wait")
        faults.wait_held("send_generation.begun")
        second = stack.haulier("replicate", guest.name, "--to", "beta", "--every", "1h").done()
        assert second["state"] == "syncing"
    assert first.finish().done()["sync"] == second["sync"]
    assert listed(stack, guest)["every_s"] == 3600
    assert_all_is_well(stack, guest)
