"""Storages beside the nodes' own: shared by both nodes, and others that a migration is told to use."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import update

from models import Storage
from tests.acceptance.faults import Faults
from tests.acceptance.guest import TPM, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.kinds import WORDS
from tests.acceptance.stack import Stack

SHARED_DISK = ("virtio0: pool:{name}/disk0.qcow2,size=64M", "ide2: pool:seed.iso,media=cdrom", TPM)


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return faults.settings


@pytest.fixture
def pool(stack: Stack) -> Path:
    """The folder of a storage that both nodes see."""
    folder = stack.state / "pool" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seed.iso").write_bytes(b"an ISO image".ljust(1 << 16, b"\0"))
    (stack.state / "storage.cfg").write_text(
        f"dir: pool\n\tpath {folder.parent}\n\tshared 1\n\ndir: fast\n\tpath {stack.state}/fast\n\tnodes beta\n"
    )
    return folder


def define(guest: Guest, node: str = "alpha") -> None:
    guest.define(node, "--storages", str(guest.stack.state / "storage.cfg"))


def started(make_guest: Callable[..., Guest], *conf: str) -> Guest:
    guest = make_guest(*conf, define=False)
    define(guest)
    guest.start()
    return guest


@pytest.fixture
def sharing(pool: Path, make_guest: Callable[..., Guest]) -> Guest:
    """A guest whose disk and ISO image are on the shared storage, and whose TPM is not."""
    del pool
    return started(make_guest, *SHARED_DISK)


def test_shared_disk_stays_where_it_is(stack: Stack, pool: Path, sharing: Guest) -> None:
    disk = pool / sharing.name / "disk0.qcow2"
    inode = disk.stat().st_ino
    for target in ("beta", "alpha"):
        document = sharing.move(target)
        methods = {volume["device"]: (volume["method"], volume["bytes"]) for volume in document["volumes"]}
        assert methods["virtio0"] == methods["ide2"] == ("none", 0)
        assert_all_is_well(stack, sharing)
        assert (sharing.volumes()["virtio0"], disk.stat().st_ino) == (disk, inode)
    sharing.stop()
    sharing.migrate("beta", "--offline").done()
    sharing.start()
    assert_all_is_well(stack, sharing)


def test_shared_disk_survives_a_target_that_fails(stack: Stack, faults: Faults, sharing: Guest) -> None:
    """Both QEMUs have it open, and it is the source's again."""
    for program, word in (("qemu", "load"), ("swtpm", "open")):
        with faults.told(program, "beta", word):
            answer = sharing.migrate("beta")
        assert answer.document["state"] == "undone", answer
        sharing.wait_ticks()
        assert_all_is_well(stack, sharing)
    assert WORDS in answer.document["error"]["message"]
    sharing.move("beta")
    assert_all_is_well(stack, sharing)


@pytest.fixture
def shared(pool: Path, make_guest: Callable[..., Guest]) -> Guest:
    """A guest of which nothing is on a node's own storage."""
    del pool
    return started(make_guest, SHARED_DISK[0], TPM.replace("local:", "pool:"))


def test_shared_tpm_state_stays_where_it_is(stack: Stack, pool: Path, shared: Guest) -> None:
    state = pool / shared.name / "tpm.raw"
    inode = state.stat().st_ino
    for target in ("beta", "alpha"):
        document = shared.move(target)
        methods = {volume["device"]: (volume["method"], volume["bytes"]) for volume in document["volumes"]}
        assert methods == {"virtio0": ("none", 0), "tpmstate0": ("tpm_sync", 0)}
        assert document["tpm"]["digest_source"] == document["tpm"]["digest_target"]
        assert document["tpm"]["identity_same"]
        assert {row["role"] for row in stack.table("tpm_ledger", vm_id=shared.row()["id"])} == {"active"}
        assert_all_is_well(stack, shared)
    shared.stop()
    shared.migrate("beta", "--offline").done()
    assert (shared.volumes()["tpmstate0"], state.stat().st_ino) == (state, inode)
    shared.start()
    assert_all_is_well(stack, shared)


@pytest.mark.parametrize(("program", "word"), [("qemu", "open"), ("qemu", "load"), ("swtpm", "open")])
def test_shared_tpm_state_survives_a_target_that_fails(
    stack: Stack, faults: Faults, shared: Guest, program: str, word: str
) -> None:
    """Two swtpms have it open, and it is the source's again: what that one knows, and no less, is in it."""
    with faults.told(program, "beta", word):
        answer = shared.migrate("beta")
    assert answer.document["state"] == "undone", answer
    shared.wait_ticks()
    assert_all_is_well(stack, shared)
    shared.stop()
    shared.start()
    assert_all_is_well(stack, shared)


def test_guest_waits_until_the_other_swtpm_has_ended(stack: Stack, faults: Faults, shared: Guest) -> None:
    with faults.holding("move_memory.handed_over"):
        command = shared.begin_migrate("beta")
        faults.wait_held("move_memory.handed_over")
        assert shared.row()["node"] == "beta"
        assert stack.processes("swtpm", node="alpha", vm=shared.name)
        assert shared.ask("query-status")["status"] != "running"
    assert "tpm_let_go" in command.finish().done()["pause"]
    assert_all_is_well(stack, shared)


@pytest.mark.parametrize("killed", ["alpha", "beta"])
def test_worker_is_killed_before_the_other_swtpm_has_ended(
    stack: Stack, faults: Faults, shared: Guest, killed: str
) -> None:
    with faults.holding("hand_over.committed"):
        command = shared.begin_migrate("beta")
        faults.wait_held("hand_over.committed")
        os.kill(stack.worker_pid(killed), signal.SIGKILL)
    command.finish().done()
    shared.wait_ticks()
    assert_all_is_well(stack, shared)


def test_storage_that_only_says_that_it_is_shared(stack: Stack, pool: Path, sharing: Guest) -> None:
    """Beta has another folder at that place: the file tells, and not the name."""
    (beta,) = stack.table("node", name="beta")
    (row,) = stack.table("storage", name="pool", node_id=beta["id"])
    other = stack.state / "other"
    (other / sharing.name).mkdir(parents=True)
    (other / sharing.name / "disk0.qcow2").write_bytes(b"another disk")
    (other / "seed.iso").write_bytes(b"another image")
    move_storage(stack, row["id"], other)
    answer = sharing.migrate("beta")
    assert (answer.status, {error["code"] for error in answer.document["errors"]}) == (2, {"not_shared"}), answer
    move_storage(stack, row["id"], pool)
    assert_all_is_well(stack, sharing)


def move_storage(stack: Stack, storage_id: int, path: Path) -> None:
    with stack.database.write() as session:
        session.execute(update(Storage).where(Storage.id == storage_id).values(path=str(path)))


def test_volumes_go_onto_the_storage_that_is_wished(stack: Stack, pool: Path, make_guest: Callable[..., Guest]) -> None:
    """The firmware's volume too, with its odd size; and off the shared storage, whose file goes then."""
    assert pool.is_dir()
    other = make_guest("virtio0: fast:other/disk0.raw,size=1M", define=False)
    define(other, "beta")
    guest = started(make_guest, SHARED_DISK[0], "efidisk0: local:{name}/efi.raw,size=528K", TPM)
    before = guest.volumes()
    assert guest.migrate("beta", "--storage-map", "pool:nowhere").document["code"] == "storage_missing"
    document = guest.migrate("beta", "--storage-map", "pool:fast", "--storage-map", "local:fast").done()
    assert {volume["method"] for volume in document["volumes"]} == {"mirror", "tpm_sync"}
    fast = stack.state / "fast" / "images" / guest.name
    assert set(guest.volumes().values()) == {fast / "disk0.qcow2", fast / "efi.raw", fast / "tpm.raw"}
    assert (fast / "efi.raw").stat().st_size == 528 << 10
    assert not any(path.exists() for path in before.values())
    guest.wait_ticks()
    assert_all_is_well(stack, guest)
    guest.migrate("alpha", "--storage-map", "fast:local").done()
    guest.stop()
    guest.start()
    assert_all_is_well(stack, guest)


@pytest.mark.parametrize("maps", [("local:pool",), ()])
def test_replicated_vm_moves_onto_a_shared_storage(
    stack: Stack, pool: Path, make_guest: Callable[..., Guest], maps: tuple[str, ...]
) -> None:
    """What both nodes see needs no replica: of it nothing is kept where the VM was."""
    guest = make_guest("virtio0: local:{name}/disk0.qcow2,size=64M", SHARED_DISK[1], TPM, define=False)
    define(guest)
    guest.start()
    stack.haulier("replicate", guest.name, "--to", "beta", "--wait").done()
    words = [word for each in maps for word in ("--storage-map", each)]
    assert guest.migrate("beta", *words).document["state"] == "done"
    assert_all_is_well(stack, guest)
    (replication,) = stack.table("replication", vm_id=guest.row()["id"])
    assert len(stack.table("replica", replication_id=replication["id"])) == (0 if maps else 2)
    (document,) = [each for each in stack.haulier("replication", "list").done() if each["vm"] == guest.name]
    assert document["state"] == ("new" if maps else "current")
    answer = stack.haulier("replicate", guest.name, "--to", "alpha", "--wait")
    assert answer.status == (2 if maps else 0)
    assert not maps or answer.document["code"] == "nothing_to_replicate"
    assert_all_is_well(stack, guest)
