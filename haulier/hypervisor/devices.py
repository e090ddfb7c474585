"""The devices of a QEMU command line: block nodes, controllers, disks, network cards, and where on PCI each sits.

Every address is a function of the definition alone: the two sides of a migration must build the same machine, whatever
order the definition lists its parts in and whichever of them were added later. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from haulier.definition.model import Nic, Role, VmDefinition
from haulier.definition.storage import Image
from haulier.hypervisor.image import layer, protocol

# The slots of the root bus follow Proxmox VE's plan; 0x01 (i440fx) and 0x1f (q35) are the chipset's, 0x02 a screen's.
_SCSI_SLOTS: Final = (0x05, 0x06)
_SATA_SLOT: Final = 0x07
_VIRTIO_SLOTS: Final = range(0x0A, 0x10)
_NIC_SLOTS: Final = range(0x12, 0x18)
# What does not fit goes behind one of three bridges; slot 0 of a bridge is its own hot-plug controller.
_BRIDGE_SLOTS: Final = {1: 0x1C, 2: 0x1D, 3: 0x1E}
_NIC_BRIDGE, _VIRTIO_BRIDGE, _SCSI_BRIDGE = 1, 2, 3

# Guests with old drivers speak only legacy virtio. Said aloud because the default, `auto`, hides it behind a PCIe port.
_TRANSITIONAL: Final = {"disable-legacy": "off", "disable-modern": "off"}
_LSI_TARGETS: Final = 7
# SeaBIOS's and QEMU's own entries (a kernel given by -kernel) use the small numbers.
_FIRST_BOOT_INDEX: Final = 100


@dataclass(frozen=True, slots=True)
class Drive:
    """A volume that QEMU opens: where its file is on this node. `path` None is an empty CD-ROM drive.

    With an `overlay`, a qcow2 over the file, that is what the guest sees, as long as it is not merged. `device_bytes`
    is that of a volume that is a device: how much of it the guest sees.
    """

    device: str
    role: Role
    node_name: str
    path: Path | None
    format: str = "raw"
    read_only: bool = False
    overlay: Path | None = None
    device_bytes: int | None = None

    @property
    def top_node(self) -> str:
        """The block node that the guest's device is attached to at first."""
        return overlay_node(self.device) if self.overlay else self.node_name

    @property
    def is_optical(self) -> bool:
        return self.role in (Role.CDROM, Role.CLOUDINIT)


# Everything that is added to a running QEMU has a name that begins so: an undo finds it without remembering it.
PREFIX = "haulier-"


def node_name(device: str) -> str:
    """The block node that a device's guest sees, and that mirrors, exports and bitmaps are attached to."""
    return f"drive-{device}"


def overlay_node(device: str) -> str:
    """The block node above that one, as long as a disk has an overlay."""
    return f"overlay-{device}"


def escaped(value: object) -> str:
    """A value inside one of QEMU's comma-separated options."""
    return str(value).replace(",", ",,")


def option(first: str, settings: Mapping[str, object]) -> str:
    """QEMU's `first,key=value,...`."""
    return ",".join([first, *(f"{key}={escaped(value)}" for key, value in settings.items())])


def pair(device: str) -> tuple[str, int]:
    """Take `virtio11` apart into bus and index."""
    match = re.fullmatch(r"([a-z]+)([0-9]+)", device)
    if not match:
        raise ValueError(f"{device} is no device with an index")
    return match.group(1), int(match.group(2))


def block_nodes(drive: Drive) -> list[str]:
    """The values of `-blockdev` for one drive, the protocol layer first; none for an empty drive."""
    if drive.path is None:
        return []
    read_only = drive.read_only or drive.is_optical
    image = Image(drive.path, drive.format, drive.device_bytes)
    if drive.overlay is None:
        return file_nodes(image, node_name=drive.node_name, read_only=read_only)
    # The job that merges the overlay into the base writes there, and nobody before.
    base = file_nodes(image, node_name=drive.node_name, read_only=False)
    overlay = file_nodes(
        Image(drive.overlay, "qcow2"), node_name=drive.top_node, read_only=False, backing=drive.node_name
    )
    return [*base, *overlay]


def file_nodes(image: Image, *, node_name: str, read_only: bool, backing: str | None = None) -> list[str]:
    """Two layers over one file: `file-<x>` opens it, `drive-<x>` understands its format."""
    file_node = f"file-{node_name.removeprefix('drive-')}"
    opening = {
        **protocol(image),
        "node-name": file_node,
        "cache": {"direct": False, "no-flush": False},
        "aio": "threads",
        "discard": "unmap",
        "locking": "auto",
        "read-only": read_only,
    }
    above = {**layer(image), "node-name": node_name, "file": file_node, "discard": "unmap", "read-only": read_only}
    if backing:
        above["backing"] = backing
    return [json.dumps(node, separators=(",", ":")) for node in (opening, above)]


class DevicePlan:
    """The values of `-device` for all disks and cards of a definition, in the order in which QEMU must see them."""

    def __init__(self, definition: VmDefinition) -> None:
        self._definition = definition
        self._is_q35 = "q35" in (definition.machine or "")
        self._root = "pcie.0" if self._is_q35 else "pci.0"
        self._serial_numbers = {spec.device: spec.options.get("serial") for spec in definition.volumes}
        order = re.sub(r"^order=", "", definition.boot or "").split(";")
        self._boot = {device: _FIRST_BOOT_INDEX + place for place, device in enumerate(filter(None, order))}
        self._bridges: set[int] = set()
        self._controllers: dict[str, str] = {}

    def lines(self, drives: Iterable[Drive]) -> list[str]:
        """Bridges, then controllers, then disks, then cards."""
        attached = [drive for drive in drives if drive.role is not Role.EFIDISK]
        disks = [self._disk(drive) for drive in sorted(attached, key=lambda drive: pair(drive.device))]
        cards = [self._card(nic) for nic in sorted(self._definition.nics, key=lambda nic: pair(nic.device))]
        bridges = [
            option("pci-bridge", {"id": f"pci.{n}", "chassis_nr": n, "bus": self._root, "addr": hex(_BRIDGE_SLOTS[n])})
            for n in sorted(self._bridges)
        ]
        return [*bridges, *self._controllers.values(), *disks, *cards]

    def _disk(self, drive: Drive) -> str:
        bus, index = pair(drive.device)
        attach = {"virtio": self._virtio, "scsi": self._scsi, "sata": self._sata, "ide": self._ide}[bus]
        driver, place = attach(index, "cd" if drive.is_optical else "hd")
        settings: dict[str, object] = {"id": drive.device, **place}
        if drive.path is not None:
            settings["drive"] = drive.top_node
        if serial := self._serial_numbers.get(drive.device):
            settings["serial"] = serial
        return option(driver, settings | self._boot_index(drive.device))

    def _virtio(self, index: int, kind: str) -> tuple[str, dict[str, object]]:
        return "virtio-blk-pci", {**self._slot(index, _VIRTIO_SLOTS, bridge=_VIRTIO_BRIDGE), **_TRANSITIONAL}

    def _scsi(self, index: int, kind: str) -> tuple[str, dict[str, object]]:
        model = self._definition.scsi_controller
        if model == "virtio-scsi-single":
            name = f"virtioscsi{index}"
            place = self._behind(_SCSI_BRIDGE, index + 1)
            self._controllers[name] = option("virtio-scsi-pci", {"id": name, **place, **_TRANSITIONAL})
            return f"scsi-{kind}", {"bus": f"{name}.0", "channel": 0, "scsi-id": 0, "lun": index}
        # An LSI chip has 7 targets and no use for LUNs; the others take all disks on one controller.
        number, target = divmod(index, _LSI_TARGETS) if model.startswith("lsi") else (0, index)
        name = f"scsihw{number}"
        extra = _TRANSITIONAL if model == "virtio-scsi-pci" else {}
        # Controllers beyond the second share a bridge with the cards beyond the sixth, above their slots 1 to 26.
        place = self._slot(number, _SCSI_SLOTS, bridge=_NIC_BRIDGE, first=27)
        self._controllers[name] = option(model, {"id": name, **place, **extra})
        if model in ("virtio-scsi-pci", "megasas"):
            return f"scsi-{kind}", {"bus": f"{name}.0", "channel": 0, "scsi-id": 0, "lun": target}
        return f"scsi-{kind}", {"bus": f"{name}.0", "scsi-id": target}

    def _sata(self, index: int, kind: str) -> tuple[str, dict[str, object]]:
        self._controllers["ahci0"] = option("ahci", {"id": "ahci0", "bus": self._root, "addr": hex(_SATA_SLOT)})
        return f"ide-{kind}", {"bus": f"ahci0.{index}"}

    def _ide(self, index: int, kind: str) -> tuple[str, dict[str, object]]:
        # q35 has no IDE of its own: its built-in AHCI calls its ports ide.0 to ide.5, with one unit each.
        if self._is_q35:
            return f"ide-{kind}", {"bus": f"ide.{index}", "unit": 0}
        return f"ide-{kind}", {"bus": f"ide.{index // 2}", "unit": index % 2}

    def _card(self, nic: Nic) -> str:
        _, index = pair(nic.device)
        settings: dict[str, object] = {"id": nic.device, "netdev": nic.device, "mac": nic.mac}
        if nic.model != "ne2k_isa":
            settings |= self._slot(index, _NIC_SLOTS, bridge=_NIC_BRIDGE)
            # A boot ROM costs start-up time, and ROMs of different size on the two hosts break a migration ("Length
            # mismatch"). Only a guest that boots from the network first needs one.
            if self._boot.get(nic.device) != _FIRST_BOOT_INDEX:
                settings["romfile"] = ""
        if nic.model == "virtio-net-pci":
            settings |= _TRANSITIONAL
            if nic.mtu is not None:
                settings["host_mtu"] = nic.mtu
        return option(nic.model, settings | self._boot_index(nic.device))

    def _boot_index(self, device: str) -> dict[str, object]:
        return {"bootindex": self._boot[device]} if device in self._boot else {}

    def _slot(self, index: int, slots: tuple[int, ...] | range, *, bridge: int, first: int = 1) -> dict[str, object]:
        if index < len(slots):
            return {"bus": self._root, "addr": hex(slots[index])}
        return self._behind(bridge, first + index - len(slots))

    def _behind(self, bridge: int, slot: int) -> dict[str, object]:
        self._bridges.add(bridge)
        return {"bus": f"pci.{bridge}", "addr": hex(slot)}
