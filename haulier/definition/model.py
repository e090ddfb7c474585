"""The definition of a VM: what its file says, in one shape for every file form.

Pure data: it can be written to JSON and read back (`as_dict`, `from_dict`) without loss, because the database keeps it
that way.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """What a volume is for. The method by which it migrates hangs on this word alone."""

    DISK = "disk"
    EFIDISK = "efidisk"
    TPMSTATE = "tpmstate"
    CLOUDINIT = "cloudinit"
    CDROM = "cdrom"
    UNUSED = "unused"
    VMSTATE = "vmstate"


_OPENED = frozenset({Role.DISK, Role.EFIDISK, Role.CDROM, Role.CLOUDINIT})


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """One volume line of a definition.

    `device` is the key it stands under (`scsi0`, `virtio1`, `efidisk0`, `tpmstate0`, `unused0`); `storage` a storage's
    name, or None with an absolute `name` for a path of the host; `name` the file's name inside the storage's folder
    (may hold sub-folders), or None when the volume is to be made and named by Haulier; an empty drive has neither.
    `size_bytes` None means "as large as it is". `section` is the one that refers to it if the main one does not:
    `PENDING` or a snapshot's name.
    """

    device: str
    role: Role
    storage: str | None = None
    name: str | None = None
    format: str = "raw"
    size_bytes: int | None = None
    read_only: bool = False
    options: dict[str, str] = field(default_factory=dict)
    section: str | None = None

    @property
    def is_empty_drive(self) -> bool:
        return self.storage is None and self.name is None

    @property
    def is_opened(self) -> bool:
        """Whether QEMU opens it: swtpm alone opens a TPM's state, and nobody a saved RAM or an unused volume."""
        return self.section is None and self.role in _OPENED


@dataclass(frozen=True, slots=True)
class Nic:
    """One network card: `model` as QEMU names the device, `mac` upper case with colons or None until it is pinned."""

    device: str
    model: str
    mac: str | None
    bridge: str | None = None
    mtu: int | None = None
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VmDefinition:
    """A whole VM.

    Memory in MiB as its owner wrote it; `boot` None or `order=scsi0;net0`; `ignored` keeps what Haulier does not know,
    to be reported and never lost.
    """

    name: str | None
    memory_mib: int = 512
    cores: int = 1
    sockets: int = 1
    cpu: str | None = None
    machine: str | None = None
    firmware: str = "seabios"
    tpm_version: str | None = None
    scsi_controller: str = "virtio-scsi-pci"
    serials: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    boot: str | None = None
    uuid: str | None = None
    vmid: int | None = None
    volumes: tuple[VolumeSpec, ...] = ()
    nics: tuple[Nic, ...] = ()
    tags: tuple[str, ...] = ()
    ignored: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """A form that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VmDefinition:
        """The inverse of `as_dict`."""
        return cls(
            **{
                **data,
                "serials": tuple(data["serials"]),
                "args": tuple(data["args"]),
                "tags": tuple(data["tags"]),
                "volumes": tuple(VolumeSpec(**{**volume, "role": Role(volume["role"])}) for volume in data["volumes"]),
                "nics": tuple(Nic(**nic) for nic in data["nics"]),
            }
        )
