"""The guest on real QEMU and swtpm: finds its devices, goes on after restarts, notices pauses and moves."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from probe.verify import verify_logs, verify_volume
from probe.volume import SECTOR_BYTES
from tests.probe.machine import Setup, running, wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

# Two busy cores: the guest's own account may differ from the host's by what the scheduler takes.
SLACK_US = 30_000
ROOT_PORT = ("-device", "pcie-root-port,id=root1,chassis=1", "-device", "virtio-blk-pci,bus=root1,drive=disk0")


@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("tpm", [True, False])
@pytest.mark.parametrize("disk_count", [0, 1, 4])
def test_finds_what_it_was_given(
    setup: Setup, make_disk: Callable[..., Path], machine: str, tpm: bool, disk_count: int
) -> None:
    disks = tuple(make_disk(f"{index}.raw") for index in range(disk_count))
    with running(replace(setup, machine=machine, tpm=tpm, disks=disks), "a") as guest:
        line = guest.wait_ticks(300)
        guest.quit()
    assert len(line.disk) == disk_count
    assert (line.tpm is not None) == tpm
    verdict = verify_logs([guest.log])
    assert verdict.problems == ()
    assert all(number >= 30 for number in verdict.disk)
    assert [verify_volume(disk).problems for disk in disks] == [()] * disk_count


def test_works_behind_a_root_port_on_a_small_disk(setup: Setup, make_disk: Callable[..., Path]) -> None:
    small = make_disk("small.raw", size_bytes=32 * 1024)
    with running(replace(setup, disks=(small,), extra=ROOT_PORT, append="disk_every=2"), "a") as guest:
        guest.wait_ticks(300)  # more than the ring holds
        guest.quit()
    assert verify_logs([guest.log]).problems == ()
    volume = verify_volume(small)
    assert (volume.problems, volume.ring) == ((), 62)
    assert volume.sequence > volume.ring


def test_killed_guest_continues_its_counters(setup: Setup) -> None:
    with running(setup, "a") as guest:
        first = guest.wait_ticks(500)
        guest.kill()
    with running(setup, "a") as guest:
        boot = guest.wait_line(lambda line: line.kind == "boot" and line.boot != first.boot)
        guest.wait_line(lambda line: line.boot == boot.boot and line.tick >= 500)
        guest.kill()
    assert first.tpm is not None and boot.tpm is not None
    assert boot.tpm >= first.tpm > 0
    assert boot.disk >= first.disk > (0,)
    verdict = verify_logs([guest.log])
    assert verdict.problems == ()
    assert verdict.boots == (first.boot, boot.boot)
    assert verify_volume(setup.disks[0]).problems == ()


def test_power_button_ends_the_guest_in_order(setup: Setup) -> None:
    with running(setup, "a") as guest:
        guest.wait_ticks(200)
        guest.ask("system_powerdown")
        assert guest.process.wait(timeout=30) == 0
    assert guest.lines()[-1].kind == "off"
    assert verify_logs([guest.log]).problems == ()
    assert (verify_volume(setup.disks[0]).sequence,) == guest.lines()[-1].disk


@pytest.mark.parametrize("pause_s", [0.12, 0.7, 2.35])
def test_pause_is_measured_from_inside(setup: Setup, pause_s: float) -> None:
    with running(setup, "a") as guest:
        guest.wait_ticks(2500)  # two seconds of the CMOS clock to set out from
        asked = time.monotonic()
        guest.ask("stop")
        stopped = time.monotonic()
        wait_for("end of the pause", lambda: True if time.monotonic() > stopped + pause_s else None)
        resumed = time.monotonic()
        guest.ask("cont")
        ended = time.monotonic()
        line = guest.wait_line(lambda line: line.number("pause_us") > 0, what="pause")
        guest.quit()
    assert (resumed - stopped) * 1e6 - SLACK_US < line.number("pause_us") < (ended - asked) * 1e6 + SLACK_US
    assert line.number("max_gap_us") >= line.number("pause_us")
    assert verify_logs([guest.log]).problems == ()


def test_live_migration_there_and_back_loses_nothing(setup: Setup) -> None:
    with running(setup, "a") as source, running(setup, "b", incoming=True) as target:
        source.wait_ticks(2500)
        source.move_to(target)
        source.quit()
        target.wait_ticks(2500)
        with running(replace(setup), "a", incoming=True) as home:
            target.move_to(home)
            target.quit()
            last = home.wait_ticks(2500)
            home.quit()
    verdict = verify_logs([source.log, target.log])
    assert verdict.problems == ()
    assert len(verdict.boots) == 1
    # On a starved host the pause is told as part of a longer gap.
    assert max(verdict.longest_pause_us, verdict.longest_gap_us) > 2000
    assert verdict.ticks >= last.tick
    assert verify_volume(setup.disks[0]).problems == ()


def write_guest_ram(stub: Path, address: int, content: bytes) -> None:
    """Write physical memory through QEMU's gdb stub, which holds the guest while somebody is connected."""
    with socket.socket(socket.AF_UNIX) as gdb:
        gdb.settimeout(30)
        gdb.connect(str(stub))
        for command in (f"M{address:x},{len(content):x}:{content.hex()}", "D"):
            gdb.sendall(f"${command}#{sum(command.encode()) % 256:02x}".encode())
            answer = b""
            while b"$OK#9a" not in answer:
                answer += gdb.recv(100)
            gdb.sendall(b"+")


def test_changed_ram_is_noticed(setup: Setup, folder: Path) -> None:
    stub = folder / "gdb"
    with running(replace(setup, extra=("-gdb", f"unix:{stub},server=on,wait=off")), "a") as guest:
        guest.wait_ticks(2500)  # a whole round over the region
        write_guest_ram(stub, 5 * 1024 * 1024, bytes(4))
        line = guest.wait_line(lambda line: line.number("ram_bad") > 0, what="ram_bad")
        guest.quit()
    assert line.number("ram_bad") == 1
    assert [problem.split(": ")[1][:9] for problem in verify_logs([guest.log]).problems] == ["ram_bad=1"]


def test_changed_disk_is_noticed(setup: Setup) -> None:
    with running(replace(setup, append="disk_ring=8"), "a") as guest:
        guest.wait_ticks(500)
        # It looks at its newest sector before it writes the next: stopped between the two, it would notice nothing.
        for _ in range(20):
            guest.ask("stop")  # no write is under way
            with setup.disks[0].open("r+b") as file:
                file.seek(2048 * SECTOR_BYTES)
                file.write(bytes(8 * SECTOR_BYTES))
            guest.ask("cont")
            if guest.wait_ticks(50).number("disk_lost"):
                break
        guest.kill()
    assert any("disk_lost=" in problem for problem in verify_logs([guest.log]).problems)


def test_qcow2_volume_is_read(setup: Setup, folder: Path) -> None:
    disk = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "8M"], check=True)
    with running(replace(setup, disks=(disk,), tpm=False), "a") as guest:
        line = guest.wait_ticks(300)
        guest.quit()
    volume = verify_volume(disk)
    assert volume.problems == ()
    assert volume.sequence >= line.disk[0]
    assert volume.tpm is None
