"""One VM moves: there and back, often, paused, powered off, and to a cold start that still knows everything."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.acceptance.guest import Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.processes import Process
from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until

MOVES = int(os.environ.get("HAULIER_TEST_MOVES", "20"))
MARKS = ("paused", "mirrors_finished", "stream_done", "proved", "committed", "resumed")
# Options that say what the machine is; all others hold paths, sockets and descriptors of one side.
MACHINE = ("-machine", "-accel", "-cpu", "-smp", "-m", "-uuid", "-rtc", "-device", "-netdev", "-tpmdev", "-append")


def test_there_and_back(stack: Stack, guest: Guest) -> None:
    there = guest.move("beta")
    assert_all_is_well(stack, guest)
    back = guest.move("alpha")
    assert_all_is_well(stack, guest)
    for document in (there, back):
        assert {phase["state"] for phase in document["phases"]} == {"done"}
        assert document["tpm"]["digest_source"] == document["tpm"]["digest_target"] is not None
        assert document["tpm"]["identity_same"] is True
        assert document["error"] is None
        assert set(MARKS) <= set(document["pause"])
        assert 0 < document["downtime_ms"] < 5_000
        assert document["ram_bytes"] > 1 << 20
        moved = {volume["device"]: volume for volume in document["volumes"]}
        assert moved["virtio0"]["method"] == "mirror" and moved["virtio0"]["bytes"] >= 64 << 20
        assert moved["tpmstate0"]["method"] == "tpm_sync" and moved["tpmstate0"]["bytes"] > 0
    assert guest.row()["epoch"] == 2
    assert len(guest.verdict().boots) == 1


@pytest.mark.timeout(900)
def test_many_moves_in_a_row_lose_nothing(stack: Stack, guest: Guest) -> None:
    for number in range(MOVES):
        assert guest.migrate(("beta", "alpha")[number % 2]).done()["state"] == "done"
    guest.wait_ticks()
    assert_all_is_well(stack, guest)
    assert guest.row()["epoch"] == MOVES
    assert len(guest.verdict().boots) == 1


def test_paused_vm_stays_paused(stack: Stack, guest: Guest) -> None:
    guest.ask("stop")
    wait_until("the row says so", lambda: guest.row()["run_state"] == "paused")
    document = guest.migrate("beta").done()
    assert document["state"] == "done"
    assert guest.row()["node"] == "beta"
    assert guest.ask("query-status")["status"] == "paused"
    before = guest.last()
    assert_all_is_well(stack, guest)
    assert guest.last() == before
    guest.ask("cont")
    guest.wait_ticks()
    assert guest.verdict().problems == ()


def test_cold_start_on_the_target_knows_the_last_values(stack: Stack, guest: Guest) -> None:
    guest.move("beta")
    last = guest.wait_ticks()
    guest.stop()
    assert_all_is_well(stack, guest)
    guest.start()
    assert_all_is_well(stack, guest)
    boot = next(line for line in guest.lines() if line.kind == "boot" and line.boot != last.boot)
    assert boot.values["tpm_fresh"] == "0"
    assert last.tpm is not None and boot.tpm is not None and boot.tpm >= last.tpm
    assert boot.disk[0] >= last.disk[0]
    guest.move("alpha")
    assert_all_is_well(stack, guest)


def test_guest_that_powers_off_is_stopped_and_starts_again(stack: Stack, guest: Guest) -> None:
    guest.move("beta")
    guest.ask("system_powerdown")
    wait_until("row says stopped", lambda: guest.row()["state"] == "stopped")
    assert guest.lines()[-1].kind == "off"
    assert_all_is_well(stack, guest)
    guest.start()
    assert_all_is_well(stack, guest)


def test_stop_asks_the_guest(stack: Stack, guest: Guest) -> None:
    guest.stop("--grace-s", "20")
    assert guest.lines()[-1].kind == "off"
    assert_all_is_well(stack, guest)


def test_both_sides_build_the_same_machine(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    conf = ("virtio0: local:{name}/disk0.raw,size=8M", "tpmstate0: local:4,version=v2.0", "net0: virtio,bridge=vmbr0")
    guest = make_guest(*conf)
    (source,) = guest.qemus().values()
    guest.move("beta")
    (target,) = guest.qemus().values()
    assert source.pid != target.pid
    assert machine_of(source) == machine_of(target)
    assert machine_of(source)["-machine"][0].startswith("pc-q35-")
    assert any("mac=52:54:00:" in device for device in machine_of(source)["-device"])
    assert "-incoming" in target.argv
    assert_all_is_well(stack, guest)


def machine_of(qemu: Process) -> dict[str, list[str]]:
    return {option: qemu.option(option) for option in MACHINE}
