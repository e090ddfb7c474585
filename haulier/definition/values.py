"""The small values that every file form shares: numbers, sizes, names, addresses; and the list of what is wrong.

Each reader of a value takes its text and returns the value, or raises `Refused` without saying where it stood;
`Reasons.at` adds the place and goes on, so that one reading names every fault of a file at once.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from haulier.definition.model import Nic, Role, VolumeSpec
from haulier.errors import Problem, Refused

KIB: Final = 1024
TPMSTATE_BYTES: Final = 4 * KIB**2
EFIDISK_BYTES: Final = 528 * KIB
EFIDISK_2M_BYTES: Final = 128 * KIB

FORMATS: Final = ("raw", "qcow2", "vmdk")
DISK_BUSES: Final = {"ide": 4, "sata": 6, "scsi": 31, "virtio": 16}
NIC_LIMIT: Final = 32
SERIAL_LIMIT: Final = 4

# Proxmox VE's names on the left (what people write), QEMU's on the right.
SCSI_CONTROLLERS: Final = {
    "virtio-scsi-pci": "virtio-scsi-pci",
    "virtio-scsi-single": "virtio-scsi-single",
    "lsi": "lsi53c895a",
    "lsi53c895a": "lsi53c895a",
    "lsi53c810": "lsi53c810",
    "megasas": "megasas",
    "pvscsi": "pvscsi",
}
NIC_MODELS: Final = {
    "virtio": "virtio-net-pci",
    "virtio-net-pci": "virtio-net-pci",
    "e1000-82540em": "e1000",
    **{
        name: name
        for name in (
            *("e1000", "e1000-82544gc", "e1000-82545em", "e1000e", "i82551", "i82557b", "i82559er"),
            *("ne2k_isa", "ne2k_pci", "pcnet", "rtl8139", "vmxnet3"),
        )
    },
}

_SIZE = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))?([KMGT]?)")
_DEVICE = re.compile(r"([a-z]+)(0|[1-9][0-9]{0,2})")
_MACHINE = re.compile(r"(pc|q35|pc-(?:i440fx|q35)-[0-9][A-Za-z0-9.]*?)(?:\+pve[0-9]+)?(?:\.pxe)?")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_STORAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BRIDGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_MAC = re.compile(r"[0-9A-F]{2}(?::[0-9A-F]{2}){5}")


class Reasons:
    """All that is wrong with one file, gathered so that its owner can mend it in one go."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Catch a refusal of the block and keep it together with `place`."""
        try:
            yield
        except Refused as refused:
            self.problems += [Problem(p.code, f"{place}: {p.message}", p.hint) for p in refused.problems]

    def raise_any(self) -> None:
        """Raise one `Refused` that names everything gathered so far; do nothing when there is nothing."""
        if self.problems:
            raise Refused.because(tuple(self.problems))


def shown(value: object) -> str:
    """A value as an error message shows it: one line, never long."""
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= 60 else text[:57] + "...")


def invalid(what: str, value: object, hint: str) -> Refused:
    """The refusal for a value that is not what it should be."""
    return Refused("invalid_value", f"{shown(value)} is no {what}", hint)


def clean_text(text: str) -> str:
    """Text that may be kept as it stands: neither a command line nor the database can hold control characters."""
    if _CONTROL.search(text):
        raise Refused("invalid_value", f"{shown(text)} holds control characters", "remove them")
    return text


def whole_number(text: str, *, low: int, high: int) -> int:
    """Read a decimal whole number between two bounds, both included."""
    if not re.fullmatch(r"[0-9]{1,15}", text) or not low <= int(text) <= high:
        raise invalid("number in its range", text, f"give a whole number from {low} to {high}")
    return int(text)


def size_in_bytes(text: str, *, default_unit: str = "") -> int:
    """Read a size such as `32G`, `528K` or `1.5T` (powers of 1024) in bytes; zero is refused."""
    match = _SIZE.fullmatch(text)
    size = 0
    if match:
        whole, fraction, unit = match.groups()
        factor = KIB ** (" KMGT".index(unit or default_unit or " "))
        size = int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)
    if not 0 < size < 2**63:
        raise invalid("size", text, "give a number above zero with K, M, G or T behind it, for example 32G")
    return size


def vm_name(text: str) -> str:
    """A VM's name: it becomes part of file names and of QEMU's options, hence the narrow alphabet."""
    if not _NAME.fullmatch(text):
        raise invalid("VM name", text, "use up to 128 letters, digits, dots, dashes and underscores")
    return text


def label_name(text: str) -> str:
    """A label of migrations, by which they are held together."""
    if not _NAME.fullmatch(text):
        raise invalid("label", text, "use up to 128 letters, digits, dots, dashes and underscores")
    return text


def mac_address(text: str) -> str:
    """A card's own address, in upper case with colons."""
    mac = text.upper()
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise invalid("MAC address of a card", text, "give six bytes such as BC:24:11:00:00:01, the first one even")
    return mac


def guest_uuid(text: str) -> str:
    """The UUID that the guest sees in its SMBIOS table, in its usual written form."""
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise invalid("UUID", text, "give 32 hexadecimal digits with dashes") from error


def machine_type(text: str) -> str:
    """QEMU's machine type; Proxmox VE's own revision suffix means nothing to QEMU and is dropped."""
    match = _MACHINE.fullmatch(text)
    if not match:
        raise Refused("unsupported_machine", f"machine type {shown(text)}", "use pc, q35, pc-i440fx-* or pc-q35-*")
    return match.group(1)


def one_of(text: str, names: dict[str, str], what: str) -> str:
    """Translate a name that must be one of a table's."""
    if text not in names:
        raise invalid(what, text, f"use one of {', '.join(names)}")
    return names[text]


def storage_name(text: str) -> str:
    """A storage's name as `storage.cfg` allows it."""
    if not _STORAGE.fullmatch(text):
        raise invalid("storage name", text, "use letters, digits, dots, dashes and underscores")
    return text


def bridge_name(text: str) -> str:
    """A bridge is a network interface of the host: at most 15 characters."""
    if not _BRIDGE.fullmatch(text):
        raise invalid("bridge name", text, "use up to 15 letters, digits, dots, dashes and underscores")
    return text


def serial_target(text: str) -> str:
    """Where a serial port leads: the word `socket`, or a device of the host."""
    if text != "socket" and (".." in text.split("/") or not re.fullmatch(r"/dev/[^,\x00-\x20]+", text)):
        raise invalid("serial port", text, "use socket or a path below /dev")
    return text


def split_device(text: str) -> tuple[str, int]:
    """Take a disk's device name apart into bus and index."""
    match = _DEVICE.fullmatch(text)
    if not match or int(match.group(2)) >= DISK_BUSES.get(match.group(1), 0):
        buses = ", ".join(f"{bus}0-{count - 1}" for bus, count in DISK_BUSES.items())
        raise Refused("invalid_device", f"{shown(text)} is no disk's device", f"use one of {buses}")
    return match.group(1), int(match.group(2))


def volume_name(text: str) -> str:
    """A file's name inside its storage's folder.

    Raises `Refused` (`volume_path_outside_storage`) for anything that could lead out of the folder. The node looks once
    more (haulier/hypervisor/volume_paths.py): it alone can see links.
    """
    if text.startswith("/") or "\0" in text or any(part in ("", ".", "..") for part in text.split("/")):
        raise Refused(
            "volume_path_outside_storage",
            f"volume name {shown(text)} does not stay inside its storage",
            "give a plain file name, with sub-folders if need be, without '..' and without a leading '/'",
        )
    # A comma would begin another of swtpm's options, and there is no way to write one that does not.
    if "," in text:
        raise invalid("volume name", text, "leave out the comma")
    return _path_text(text)


def _path_text(text: str) -> str:
    """Part of a path: no line may end in it, or a log and a table would show two names for one."""
    if "\n" in text or "\t" in text:
        raise Refused("invalid_value", f"{shown(text)} holds control characters", "remove them")
    return clean_text(text)


def host_path(text: str) -> str:
    """An absolute path of the host, outside every storage."""
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise invalid("absolute path", text, "give a path that starts with '/' and has no '..' in it")
    return _path_text(text)


def volume_format(text: str | None, name: str | None) -> str:
    """The format that was asked for, or else the one that the file's extension tells, or else raw."""
    if text is None:
        extension = (name or "").rpartition(".")[2].lower()
        return extension if extension in FORMATS else "raw"
    if text not in FORMATS:
        raise Refused("unsupported_format", f"volume format {shown(text)}", f"use one of {', '.join(FORMATS)}")
    return text


def checked_volume(volume: VolumeSpec) -> VolumeSpec:
    """Refuse what no file form may ask of one volume, for the reason that QEMU or swtpm could not do it."""
    if volume.role is Role.TPMSTATE and volume.format != "raw":
        raise Refused(
            "unsupported_format", "a TPM state volume must be raw", "swtpm reads a plain file: use format raw"
        )
    if volume.is_empty_drive and volume.role is not Role.CDROM:
        raise invalid("volume", "none", "only a CD-ROM drive may be empty: name a storage and a volume")
    if volume.role is Role.CDROM and volume.device.startswith("virtio"):
        raise invalid("device for a CD-ROM", volume.device, "put the CD-ROM on ide, sata or scsi")
    if volume.role is Role.DISK and volume.read_only and volume.device.startswith(("ide", "sata")):
        raise invalid("device for a read-only disk", volume.device, "put a read-only disk on scsi or virtio")
    return volume


def checked_nic(nic: Nic) -> Nic:
    """Refuse an MTU that only a paravirtual card can tell its guest."""
    if nic.mtu is not None and nic.model != "virtio-net-pci":
        raise invalid("setting for this card", f"mtu={nic.mtu}", "only the model virtio knows an MTU")
    return nic
