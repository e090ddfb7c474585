"""Volumes that are devices: defined, moved from files and back, live and offline, and made raw on the way."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.faults import Faults
from tests.acceptance.guest import TPM, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.kinds import MIB, Kinds
from tests.acceptance.stack import Stack
from tests.acceptance.test_volumes import make_image

DISK = "virtio0: local:{name}/disk0.qcow2,size=64M"
CLOUD_INIT = "ide2: local:{name}/vm-%s-cloudinit.qcow2,media=cdrom,size=4M"
UNUSED = "unused0: local:{name}/old.qcow2"
NAMES = {"virtio0": "disk0", "ide2": "vm-%s-cloudinit", "unused0": "old", "tpmstate0": "tpm"}
DEVICE_KINDS = ("devices", "thick", "thin")


@pytest.fixture
def settings(faults: Faults) -> dict[str, str]:
    return faults.settings


@pytest.fixture
def kinds(stack: Stack, faults: Faults) -> Kinds:
    faults.kinds.register(stack)
    return faults.kinds


def on_device(guest: Guest, device: str) -> str:
    """What a volume of the guest is called where it is a device."""
    return f"{guest.name}-{NAMES[device].replace('%s', number(guest))}"


def number(guest: Guest) -> str:
    """What its cloud-init is named after."""
    return guest.name.removeprefix("vm")


def make(stack: Stack, make_guest: Callable[..., Guest]) -> Guest:
    """A guest of files in formats that no device holds."""
    guest = make_guest(define=False)
    guest.conf = (DISK, CLOUD_INIT % number(guest), UNUSED, TPM)
    make_image(stack.images("alpha") / guest.name / "old.qcow2", form="qcow2", size="6M", fill=b"o")
    guest.define()
    guest.start()
    return guest


def provide(kinds: Kinds, guest: Guest, node: str, storage: str) -> None:
    """What has to be there before somebody comes to such a storage."""
    if storage == "devices":
        for device in NAMES:
            kinds.provide(node, on_device(guest, device))


def shown(guest: Guest) -> dict[str, Any]:
    document = guest.stack.haulier("vm", "show", guest.name).done()
    return {volume["device"]: volume for volume in document["volumes"]}


def content(guest: Guest, device: str) -> bytes:
    """A volume as its guest sees it."""
    volume = shown(guest)[device]
    image = ["-f", volume["format"], volume["path"]]
    out = guest.stack.state / "content"
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", *image, out], check=True)
    return out.read_bytes()[: volume["size_bytes"]]


@pytest.mark.parametrize("storage", DEVICE_KINDS)
def test_onto_devices_and_back(stack: Stack, kinds: Kinds, make_guest: Callable[..., Guest], storage: str) -> None:
    """Live there, at rest back, at rest there, live back."""
    guest = make(stack, make_guest)
    sizes = {device: volume["size_bytes"] for device, volume in shown(guest).items()}
    before = {device: content(guest, device) for device in ("ide2", "unused0")}
    provide(kinds, guest, "beta", storage)
    provide(kinds, guest, "alpha", storage)
    guest.migrate("beta", "--storage-map", f"local:{storage}").done()
    assert_all_is_well(stack, guest)
    for device, volume in shown(guest).items():
        assert (volume["format"], Path(volume["path"]).name) == ("raw", on_device(guest, device))
        assert Path(volume["path"]).is_block_device()
    guest.stop()
    guest.migrate("alpha", "--storage-map", f"{storage}:local", "--offline").done()
    assert_all_is_well(stack)
    names = {device: Path(volume["path"]).name for device, volume in shown(guest).items()}
    assert (names["virtio0"], names["tpmstate0"]) == ("disk0.raw", "tpm.raw")
    guest.migrate("beta", "--storage-map", f"local:{storage}", "--offline").done()
    guest.start()
    assert_all_is_well(stack, guest)
    guest.migrate("alpha", "--storage-map", f"{storage}:{storage}").done()
    guest.wait_ticks()
    assert_all_is_well(stack, guest)
    assert {device: volume["size_bytes"] for device, volume in shown(guest).items()} == sizes
    assert {device: content(guest, device) for device in before} == before
    assert kinds.lvm.volumes(kinds.group("beta")) == {"data"}, "nothing was left there"


@pytest.mark.parametrize("storage", ["thick", "thin"])
def test_defined_on_lvm(stack: Stack, kinds: Kinds, make_guest: Callable[..., Guest], storage: str) -> None:
    """Made, started, stopped and started again; names are made of the VM's."""
    lines = [f"virtio0: {storage}:0.0625", f"tpmstate0: {storage}:1,version=v2.0"]
    lines.append(f"virtio1: {storage}:{{name}}-b,size=8M")
    guest = make_guest(*lines, start=False)
    volumes = shown(guest)
    folder = Path("/dev") / kinds.group("alpha")
    assert [volumes[device]["path"] for device in ("virtio0", "tpmstate0", "virtio1")] == [
        str(folder / f"{guest.name}-{name}") for name in ("virtio0", "tpmstate0", "b")
    ]
    assert volumes["tpmstate0"]["size_bytes"] == 4 * MIB
    assert content(guest, "virtio1") == bytes(8 * MIB), "what an older volume has left is not to be read"
    guest.start()
    guest.stop()
    subprocess.run([kinds.programs / "lvchange", "--activate", "n", f"{folder.name}/{guest.name}-virtio0"], check=True)
    guest.start()
    assert_all_is_well(stack, guest)


def test_firmware_variables_have_their_own_size(stack: Stack, kinds: Kinds, make_guest: Callable[..., Guest]) -> None:
    """PVE writes down what LVM has made of it; firmware takes no other size than its own."""
    lines = ("bios: ovmf", "efidisk0: thick:{name}-efi,efitype=4m,size=4M", "tpmstate0: thick:{name}-tpm,version=v2.0")
    guest = make_guest(*lines, start=False)
    assert shown(guest)["efidisk0"]["size_bytes"] == 528 << 10
    stack.haulier("vm", "start", guest.name).done()
    guest.migrate("beta").done()
    assert shown(guest)["efidisk0"]["size_bytes"] == 528 << 10
    assert b"_FVH" in content(guest, "efidisk0")
    guest.migrate("alpha", "--storage-map", "thick:local").done()
    path = Path(shown(guest)["efidisk0"]["path"])
    assert path.stat().st_size == 528 << 10
    assert_all_is_well(stack)


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (("virtio0: thick:{name}/disk.raw,size=8M",), "bad_volume_name"),
        (("virtio0: thick:{name}-d,size=8M,format=qcow2",), "format_not_held"),
        (("virtio0: devices:{name}-d,size=8M",), "device_missing"),
        (("virtio0: thick:9000",), "volume_not_made"),
        (("virtio0: thick:{name}-d",), "volume_missing"),
    ],
)
def test_refused_when_it_is_defined(
    stack: Stack, kinds: Kinds, make_guest: Callable[..., Guest], lines: tuple[str, ...], code: str
) -> None:
    guest = make_guest("virtio1: thick:{name}-first,size=8M", *lines, define=False)
    answer = stack.haulier("vm", "define", str(guest.write_conf()), "--node", "alpha")
    assert (answer.status, answer.document["code"]) == (2, code), answer
    assert not stack.table("vm", name=guest.name)
    assert not any(name.startswith(guest.name) for name in kinds.lvm.volumes(kinds.group("alpha")))


def test_replica_needs_files(stack: Stack, kinds: Kinds, make_guest: Callable[..., Guest]) -> None:
    del kinds
    guest = make_guest("virtio0: thin:{name}-d,size=8M", start=False)
    answer = stack.haulier("replicate", guest.name, "--to", "beta", "--wait")
    assert (answer.status, answer.document["code"]) == (2, "replica_needs_files"), answer
