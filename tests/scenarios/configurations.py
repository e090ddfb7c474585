"""What VMs of the table are made of, by name."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.guest import DISK, TPM, Guest
from tests.acceptance.stack import Stack
from tests.acceptance.test_volumes import make_image

QCOW2 = "virtio0: local:{name}/disk0.qcow2,size=64M"
SECOND = "virtio1: local:{name}/disk1.qcow2,size=48M"
CLOUD_INIT = "ide2: local:{name}/vm-9-cloudinit.raw,media=cdrom,size=4M"
NAMED_CLOUD_INIT = "ide2: local:vm-9-cloudinit.raw,media=cdrom,size=4M"


def _nothing(_: Guest) -> None:
    """Nothing to be prepared."""


@dataclass(frozen=True)
class Configuration:
    """Lines of a VM's file; `found` makes what must be there before it is defined, `ready` what is done before it is
    started, `replicated` keeps a replica on beta. `ticks`: its guest is the probe, and is heard.
    """

    conf: tuple[str, ...]
    found: Callable[[Guest], None] = _nothing
    ready: Callable[[Guest], None] = _nothing
    replicated: bool = False
    ticks: bool = True


def home(guest: Guest, name: str) -> Path:
    """A file of the guest in alpha's own images."""
    return guest.stack.images("alpha") / guest.name / name


def _make(name: str, form: str = "raw") -> Callable[[Guest], None]:
    return lambda guest: make_image(home(guest, name), form=form, size="6M", fill=b"f")


def _pool(guest: Guest) -> None:
    """A storage that both nodes see, with an ISO image on it, and one that alpha alone has."""
    stack = guest.stack
    folder = stack.state / "pool" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seed.iso").write_bytes(b"an ISO image".ljust(1 << 16, b"\0"))
    storage_cfg(stack).write_text(
        f"dir: pool\n\tpath {folder.parent}\n\tshared 1\n\ndir: only\n\tpath {stack.state}/only\n\tnodes alpha\n"
    )


def storage_cfg(stack: Stack) -> Path:
    """Where a configuration describes storages beside the nodes' own."""
    return stack.state / "storage.cfg"


def _snapshot(guest: Guest) -> None:
    subprocess.run(["qemu-img", "snapshot", "-c", "kept", home(guest, "disk0.qcow2")], check=True)


def _iso(guest: Guest) -> None:
    home(guest, "local.iso").parent.mkdir(parents=True, exist_ok=True)
    home(guest, "local.iso").write_bytes(b"an ISO image".ljust(1 << 16, b"\0"))


def _clone(guest: Guest) -> None:
    base = guest.stack.state / f"{guest.name}-base.qcow2"
    make_image(base, form="qcow2", size="64M", fill=b"b")
    home(guest, "disk0.qcow2").parent.mkdir()
    over = ("-b", base, "-F", "qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *over, home(guest, "disk0.qcow2")], check=True)


def _data_file(guest: Guest) -> None:
    home(guest, "disk0.qcow2").parent.mkdir()
    content = ("-o", f"data_file={guest.stack.state}/{guest.name}-content.raw")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *content, home(guest, "disk0.qcow2"), "64M"], check=True)


def _host_file(guest: Guest) -> None:
    make_image(guest.stack.state / f"{guest.name}.raw", form="raw", size="8M", fill=b"h")
    guest.conf = (*guest.conf, f"virtio1: {guest.stack.state}/{guest.name}.raw,size=8M")


def _two_names(guest: Guest) -> None:
    make_image(home(guest, "disk0.raw"), form="raw", size="64M", fill=b"d")
    os.link(home(guest, "disk0.raw"), home(guest, "again.raw"))


def on(storage: str, line: str) -> str:
    """The same volume as a device."""
    return re.sub(r"local:(?:\{name\}/)?([a-z0-9-]+)\.[a-z0-9]+", rf"{storage}:{{name}}-\1", line)


CONFIGURATIONS = {
    "disk and TPM": Configuration((DISK, TPM)),
    "disk alone": Configuration((DISK,)),
    "TPM alone": Configuration((TPM,)),
    "qcow2": Configuration((QCOW2, TPM)),
    "two disks": Configuration((DISK, SECOND, TPM)),
    "cloud-init": Configuration((DISK, CLOUD_INIT, TPM)),
    "named cloud-init": Configuration((DISK, NAMED_CLOUD_INIT)),
    "unused": Configuration((DISK, "unused0: local:{name}/old.qcow2", TPM), found=_make("old.qcow2", "qcow2")),
    "pending disk": Configuration((DISK, TPM, "[PENDING]", "virtio1: local:{name}/new.raw"), found=_make("new.raw")),
    "saved RAM": Configuration(
        (DISK, TPM, "[before]", "virtio0: local:{name}/disk0.raw", "vmstate: local:{name}/saved.raw"),
        found=_make("saved.raw"),
    ),
    "disk of a snapshot": Configuration(
        (DISK, TPM, "[before]", "virtio1: local:{name}/old.raw"), found=_make("old.raw")
    ),
    "internal snapshot": Configuration((QCOW2, TPM), ready=_snapshot),
    "empty drive": Configuration((DISK, "ide2: none,media=cdrom", TPM)),
    "local ISO": Configuration((DISK, "ide2: local:{name}/local.iso,media=cdrom", TPM), found=_iso),
    "shared ISO": Configuration((DISK, "ide2: pool:seed.iso,media=cdrom", TPM), found=_pool),
    "shared disk": Configuration(("virtio0: pool:{name}/disk0.qcow2,size=64M", TPM), found=_pool),
    "shared TPM": Configuration((DISK, TPM.replace("local:", "pool:")), found=_pool),
    "all shared": Configuration(
        ("virtio0: pool:{name}/disk0.qcow2,size=64M", TPM.replace("local:", "pool:")), found=_pool
    ),
    "disk of alpha's storage": Configuration(("virtio0: only:{name}/disk0.qcow2,size=64M", TPM), found=_pool),
    "clone": Configuration((QCOW2, TPM), found=_clone),
    "content in another file": Configuration((QCOW2, TPM), found=_data_file),
    "disk of the host": Configuration((DISK,), found=_host_file),
    "on LVM": Configuration((on("thick", DISK), on("thick", TPM))),
    "on thin LVM": Configuration((on("thin", QCOW2), on("thin", TPM))),
    "UEFI on LVM": Configuration(
        (DISK, "bios: ovmf", on("thick", "efidisk0: local:{name}/vars.raw,size=4M"), TPM), ticks=False
    ),
    "two names": Configuration((DISK, "unused0: local:{name}/again.raw"), found=_two_names),
    "custom CPU": Configuration((DISK, TPM, "cpu: max")),
    "UEFI": Configuration((DISK, "bios: ovmf", "efidisk0: local:{name}/vars.raw,size=528K", TPM), ticks=False),
    "replicated": Configuration((DISK, SECOND, TPM), replicated=True),
    # Of a qcow2 a QEMU that is killed has not written what it knows, unless its guest flushes.
    "replicated, raw": Configuration((DISK, TPM), replicated=True),
    "replicated, UEFI": Configuration(
        (DISK, "bios: ovmf", "efidisk0: local:{name}/vars.raw,size=528K", TPM), replicated=True, ticks=False
    ),
    "replicated, internal snapshot": Configuration((QCOW2, TPM), ready=_snapshot, replicated=True),
    "replicated, cloud-init": Configuration((DISK, CLOUD_INIT, TPM), replicated=True),
}
