"""A node is lost, and its VM goes on from its replica: with disks and TPM of one moment, and never twice."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from probe.lines import Line, read_lines
from probe.volume import verify_volume
from tests.acceptance.faults import Faults
from tests.acceptance.guest import DISK, TPM, Guest
from tests.acceptance.stack import Stack
from tests.acceptance.test_replication import QCOW2, listed, replicate
from tests.acceptance.waiting import wait_until


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return {**faults.settings, "HAULIER_NODE_SILENT_AFTER_S": "3"}


@pytest.fixture
def stack(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Stack]:
    """What a node loses does not come back by itself: nobody else gets this stack."""
    yield stack
    request.getfixturevalue("stacks").remove()


def lose(stack: Stack, guest: Guest, *, with_guest: bool = True) -> None:
    """The power of alpha fails; or only its worker is gone, whatever people say."""
    stack.supervisor("stopProcess", "node-alpha")
    if with_guest:
        for process in stack.processes(node="alpha"):
            os.kill(process.pid, signal.SIGKILL)
        wait_until("alpha is dark", lambda: not stack.processes(node="alpha"))
    wait_until("alpha is silent", lambda: node(stack, "alpha")["worker"] == "silent")
    stack.haulier("node", "lost", "alpha", "--yes-it-is-off").done()
    assert (node(stack, "alpha")["state"], guest.row()["state"]) == ("lost", "lost")


def node(stack: Stack, name: str) -> dict[str, str]:
    document: dict[str, str] = stack.haulier("node", "show", name).done()
    return document


def newest_record(path: Path, form: str, folder: Path) -> tuple[int, int]:
    """What the guest wrote to a disk last: the record's number, and its TPM's counter at that time."""
    raw = folder / "raw"
    subprocess.run(["qemu-img", "convert", "-U", "-f", form, "-O", "raw", path, raw], check=True)
    verdict = verify_volume(raw)
    assert not verdict.problems
    assert verdict.tpm is not None
    return verdict.sequence, verdict.tpm


def recover(stack: Stack, guest: Guest) -> None:
    document = stack.haulier("recover", guest.name, "--on", "beta").done()
    assert (document["node"], document["state"], document["epoch"]) == ("beta", "running", 1)


def first_line(stack: Stack, guest: Guest) -> Line | None:
    """What the guest said first on beta."""
    log = stack.state / "nodes/beta/vms" / guest.name / "serial0.log"
    lines, _torn = read_lines([log.read_text(errors="replace") if log.exists() else ""])
    return min(lines, key=lambda line: line.order, default=None)


def test_guest_goes_on_from_its_replica(stack: Stack, make_guest: Callable[..., Guest], tmp_path: Path) -> None:
    guest = make_guest(DISK, QCOW2, TPM)
    identity = stack.haulier("vm", "show", guest.name).done()["tpm"]["identity"]
    replicate(guest)
    guest.wait_ticks()
    replicate(guest)
    beta = stack.images("beta") / guest.name
    disks = (("disk0.raw", "raw"), ("disk1.qcow2", "qcow2"))
    records = [newest_record(beta / name, form, tmp_path) for name, form in disks]
    guest.wait_ticks()
    lose(stack, guest)
    recover(stack, guest)
    first = wait_until("first line on beta", lambda: first_line(stack, guest))
    for number, (sequence, tpm) in enumerate(records):
        assert first.disk[number] >= sequence
        assert first.tpm is not None
        # It counts in its TPM twenty times a second, and writes to its disks in between.
        assert tpm <= first.tpm <= tpm + 2, "disks and TPM are of one moment"
    assert stack.haulier("vm", "show", guest.name).done()["tpm"]["identity"] == identity
    assert stack.haulier("replication", "list").done() == []
    stack.start_worker("alpha")
    assert node(stack, "alpha")["state"] == "maintenance", "it takes nothing new before somebody has looked"
    assert list(guest.qemus()) == ["beta"]


def test_node_that_comes_back_with_its_guest_ends_it(stack: Stack, guest: Guest) -> None:
    """Somebody gave his word, and was wrong."""
    replicate(guest)
    lose(stack, guest, with_guest=False)
    recover(stack, guest)
    assert set(guest.qemus()) == {"alpha", "beta"}
    stack.start_worker("alpha")
    wait_until("one guest", lambda: set(guest.qemus()) == {"beta"}, deadline_s=30)
    assert stack.table("event", kind="programs.stopped")
    answer = stack.haulier("recover", guest.name, "--on", "beta")
    assert (answer.status, answer.document["code"]) == (2, "already_there")


def test_node_is_lost_in_the_middle_of_a_sync(
    stack: Stack, faults: Faults, make_guest: Callable[..., Guest], tmp_path: Path
) -> None:
    guest = make_guest(DISK, TPM)
    replicate(guest)
    with faults.holding("send_generation.begun"):
        sync = stack.begin("replicate", guest.name, "--to", "beta", "--wait")
        faults.wait_held("send_generation.begun")
        sequence, _ = newest_record(stack.images("beta") / guest.name / "disk0.raw", "raw", tmp_path)
        os.kill(stack.guardian_pid("alpha"), signal.SIGKILL)
        lose(stack, guest)
    assert sync.finish().document["state"] == "failed"
    recover(stack, guest)
    first = wait_until("first line on beta", lambda: first_line(stack, guest))
    assert first.disk[0] >= sequence
    assert sorted(path.name for path in (stack.images("beta") / guest.name).iterdir()) == ["disk0.raw", "tpm.m1.raw"]


def test_node_is_lost_in_the_middle_of_a_migration(stack: Stack, faults: Faults, guest: Guest) -> None:
    replicate(guest)
    with faults.holding("mirror_disks.run.ends"):
        command = guest.begin_migrate("beta")
        faults.wait_held("mirror_disks.run.ends")
        os.kill(stack.guardian_pid("alpha"), signal.SIGKILL)
        lose(stack, guest)
    answer = command.finish()
    assert (answer.status, answer.document["state"]) == (1, "undone")
    assert "node_lost" in {error["code"] for error in answer.document["errors"]}
    recover(stack, guest)
    guest.wait_ticks()


def test_what_is_refused(stack: Stack, guest: Guest) -> None:
    def refused(*words: str) -> set[str]:
        answer = stack.haulier(*words)
        assert answer.status == 2, answer
        return {error["code"] for error in answer.document["errors"]}

    assert refused("recover", guest.name, "--on", "beta") == {"node_not_lost", "no_replica"}
    assert refused("node", "lost", "alpha") == {"not_confirmed"}
    assert refused("node", "lost", "alpha", "--yes-it-is-off") == {"node_alive"}
    assert refused("node", "lost", "gamma", "--yes-it-is-off") == {"unknown_node"}
    replicate(guest)
    assert refused("recover", guest.name, "--on", "beta") == {"node_not_lost"}
    lose(stack, guest)
    assert refused("recover", guest.name, "--on", "alpha") >= {"node_lost"}
    assert refused("replicate", guest.name, "--to", "beta") == {"node_silent"}
    replica = stack.images("beta") / guest.name / "tpm.m1.raw"
    whole = replica.read_bytes()
    replica.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    before = guest.row()
    assert refused("recover", guest.name, "--on", "beta") == {"replica_tpm_differs"}
    (disk,) = (stack.images("beta") / guest.name).glob("disk0*")
    aside = disk.rename(disk.with_name("aside"))
    replica.write_bytes(whole)
    assert refused("recover", guest.name, "--on", "beta") == {"replica_missing"}
    assert guest.row() == before
    aside.rename(disk)
    recover(stack, guest)
    guest.wait_ticks()


def test_target_that_is_away_does_not_keep_the_vm(stack: Stack, faults: Faults, guest: Guest) -> None:
    """Its host dies in a sync, or just after its commit: the VM can be stopped, and the next sync makes up for it."""
    replicate(guest)
    for point, generation in (("send_generation.begun", 1), ("take_generation.committed", 2)):
        with faults.holding(point):
            command = stack.begin("replicate", guest.name, "--to", "beta", "--wait")
            faults.wait_held(point)
            stack.supervisor("stopProcess", "node-beta")
            for process in stack.processes(node="beta"):
                os.kill(process.pid, signal.SIGKILL)
        command.finish()
        assert listed(stack, guest)["generation"] == generation
        guest.stop()
        stack.start_worker("beta")
        guest.start()
    assert replicate(guest)["generation"] == 3
    wait_until("what was left is put away", lambda: not unfinished(stack))
    assert {row["overlay"] for row in stack.table("replica")} == {None}


def unfinished(stack: Stack) -> list[Any]:
    """Files of attempts that are over, before a worker has put them away."""
    return [row for row in stack.table("allocation", kind="volume", freed_at=None) if "orphan" not in row["purpose"]]
