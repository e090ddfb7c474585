"""All kinds of volumes cross, each by its method, and a VM with replicas of everything migrates live."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.acceptance.guest import DISK, TPM, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.stack import Stack

TWO_DISKS = (
    DISK,
    "virtio1: local:{name}/disk1.qcow2,size=48M",
    "ide2: local:{name}/vm-9-cloudinit.raw,media=cdrom,size=4M",
    "unused0: local:{name}/old.qcow2",
    TPM,
    "[PENDING]",
    "virtio2: local:{name}/new.raw",
    "[before]",
    "virtio0: local:{name}/disk0.raw",
    "vmstate: local:{name}/saved.raw",
)
# Of them the ones that are there before the VM is defined, with their forms.
FOUND = {
    "unused0": ("old.qcow2", "qcow2"),
    "PENDING.virtio2": ("new.raw", "raw"),
    "before.vmstate": ("saved.raw", "raw"),
}


def make_image(path: Path, *, form: str, size: str, fill: bytes) -> None:
    """An image that was there before its VM was defined, with something in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", form, path, size], check=True)
    pattern = f"write -P {fill[0]} 64k 192k"
    subprocess.run(["qemu-io", "-f", form, "-c", pattern, path], check=True, capture_output=True)


def make_found(stack: Stack, guest: Guest) -> dict[str, bytes]:
    """The volumes that must be there first, and what is in them."""
    paths = {device: stack.images("alpha") / guest.name / name for device, (name, _) in FOUND.items()}
    for device, (_, form) in FOUND.items():
        make_image(paths[device], form=form, size="6M", fill=device.encode())
    return {device: contents(path) for device, path in paths.items()}


def contents(path: Path) -> bytes:
    """What a guest would read from an image."""
    with tempfile.NamedTemporaryFile(prefix="ha-contents-") as raw:
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", path, raw.name], check=True)
        return Path(raw.name).read_bytes()


def test_every_kind_of_volume_crosses(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(*TWO_DISKS, start=False, define=False)
    before = make_found(stack, guest)
    guest.define()
    seed = guest.volumes()["ide2"]
    seed.write_bytes(b"the seed of cloud-init".ljust(seed.stat().st_size, b"\0"))
    before["ide2"] = seed.read_bytes()
    guest.start()
    document = guest.move("beta")
    methods = {volume["device"]: volume["method"] for volume in document["volumes"]}
    assert methods == {
        "virtio0": "mirror", "virtio1": "mirror", "ide2": "copy", **dict.fromkeys(FOUND, "copy"),
        "tpmstate0": "tpm_sync",
    }  # fmt: skip
    after = guest.volumes()
    assert {stack.images("beta")} <= set(after["virtio1"].parents)
    assert {device: contents(after[device]) for device in before} == before
    assert_all_is_well(stack, guest)
    assert sorted(guest.volume_verdicts()) == ["virtio0", "virtio1"]
    guest.move("alpha")
    assert_all_is_well(stack, guest)


def test_vm_without_tpm_migrates(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(DISK)
    document = guest.move("beta")
    assert document["tpm"] is None
    assert_all_is_well(stack, guest)
    assert guest.verdict().tpm is None


def test_vm_with_a_tpm_and_no_disk_migrates(stack: Stack, make_guest: Callable[..., Guest]) -> None:
    guest = make_guest(TPM)
    guest.move("beta")
    assert_all_is_well(stack, guest)
    assert guest.verdict().tpm is not None


def test_vm_with_replicas_of_everything_migrates_live(stack: Stack, guest: Guest) -> None:
    """Others' live migration falls apart when a replicated VM has a TPM (the case this project began with)."""
    add_replicas(stack, guest, node="beta")
    planned = stack.haulier("explain", guest.name, "--to", "beta").done()
    assert planned["refusals"] == []
    methods = {volume["device"]: volume["method"] for volume in planned["volumes"]}
    assert methods["tpmstate0"] == "tpm_sync" and methods["virtio0"] in ("mirror", "delta")
    guest.move("beta")
    assert_all_is_well(stack, guest)
    replicas = {row["storage_id"] for row in stack.table("replica")}
    assert replicas.isdisjoint(row["id"] for row in stack.table("storage") if row["path"].endswith("beta/images"))
    guest.move("alpha")
    assert_all_is_well(stack, guest)


def add_replicas(stack: Stack, guest: Guest, *, node: str) -> None:
    """Have a replica of all its volumes on another node."""
    document = stack.haulier("replicate", guest.name, "--to", node, "--wait").done()
    assert (document["state"], document["generation"]) == ("current", 1)
