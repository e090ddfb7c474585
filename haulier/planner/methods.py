"""The method table: how a volume crosses, by its role, by where it lies and by what the guest does. Nothing else in
Haulier asks for a role to decide this.

`haulier explain` prints the row that applies with its reason, the chain works by it, docs/volumes.md is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from haulier.definition import Role
from haulier.definition.storage import KINDS, StorageKind, can_be_one_file, format_on
from haulier.errors import Problem


class Method(StrEnum):
    """How one volume crosses in one migration."""

    MIRROR = "mirror"
    DELTA = "delta"
    COPY = "copy"
    TPM_SYNC = "tpm_sync"
    RECREATE = "recreate"
    NONE = "none"


class Situation(StrEnum):
    """Where the volume lies and what the guest does."""

    LOCAL_LIVE = "local, live"
    LOCAL_OFFLINE = "local, offline"
    REPLICATED_LIVE = "replica on the target, live"
    REPLICATED_OFFLINE = "replica on the target, offline"
    SNAPSHOT_ONLY = "referred to by a snapshot only"
    SHARED = "on a storage that both nodes share"


# Their names are known elsewhere: cloud-init's is made of the VM's number, that of saved RAM stands in its snapshot.
KEEPS_NAME = frozenset({Role.CLOUDINIT, Role.VMSTATE})


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the table: a method and why it is this one. A refusal has no method, but a code and a hint."""

    method: Method
    reason: str
    code: str | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """What the table needs to know about a volume; `offline` is its VM, when that does not run.

    `snapshot_only`: a snapshot of the VM refers to it, and the VM as it is now does not. The kinds are those of the
    storages that it is on and goes to.
    """

    device: str
    role: Role
    shared: bool = False
    replica_on_target: bool = False
    offline: bool = False
    snapshot_only: bool = False
    format: str = "raw"
    source_kind: StorageKind = StorageKind.FOLDER
    target_kind: StorageKind = StorageKind.FOLDER

    @property
    def target_format(self) -> str:
        """Its own format, where the storage can hold that."""
        return format_on(self.target_kind, self.format)

    @property
    def situation(self) -> Situation:
        if self.shared:
            return Situation.SHARED
        if self.snapshot_only:
            return Situation.SNAPSHOT_ONLY
        if self.replica_on_target:
            return Situation.REPLICATED_OFFLINE if self.offline else Situation.REPLICATED_LIVE
        return Situation.LOCAL_OFFLINE if self.offline else Situation.LOCAL_LIVE


@dataclass(frozen=True, slots=True)
class Choice:
    """The method for one volume, in words; without a method the migration is refused for `refusal`."""

    device: str
    role: Role
    method: Method
    reason: str
    refusal: Problem | None = None


_LIVE_DISK = Cell(Method.MIRROR, "QEMU writes it: mirrored over NBD until the switch-over, finished in the pause")
_LIVE_DELTA = Cell(
    Method.DELTA,
    "QEMU writes it: what was written since the replica's generation goes onto an overlay over the replica, then each "
    "later write, finished in the pause; all of it where no bitmap says what that is",
)
_DISK_AT_REST = Cell(
    Method.COPY, "nobody writes it: its file is copied as it is, with its holes and its internal snapshots"
)
# The same where one side is a device, or the format changes.
_CONTENT_AT_REST = Cell(Method.COPY, "nobody writes it: what its guest sees of it is copied")
_DELTA_AT_REST = Cell(
    Method.DELTA,
    "nobody writes it: one last sync of what was written since the replica's generation; where no bitmap says what "
    "that is, both are compared, and what differs is sent",
)
_LIVE_TPM = Cell(
    Method.TPM_SYNC,
    "only swtpm has it open, not QEMU: copied once, then carried in the stream of the devices, and proved in the pause",
)
_TPM_AT_REST = Cell(
    Method.TPM_SYNC, "nobody has it open: copied once, digests compared, the TPM asked who it is on both nodes"
)
_COLD = Cell(Method.COPY, "QEMU does not write it while the guest runs: its file is copied once")
_COLD_AT_REST = Cell(Method.COPY, "nobody writes it: its file is copied once")
_COLD_BESIDE = Cell(
    Method.COPY,
    "QEMU does not write it: the replica's file becomes it, or its own is copied if it looks changed since",
)
_LOCAL_ISO = Cell(
    Method.NONE, "{device} holds an ISO image of this node only", "cdrom_local", "Eject it, then migrate."
)
_OLD_DISK = Cell(
    Method.NONE,
    "{device} is a disk of a snapshot, and the VM as it is now has it not",
    "snapshot_only",
    "Delete the snapshot, or attach the disk.",
)
_SHARED = Cell(Method.NONE, "both nodes see the same file: no byte of it crosses")
_SHARED_TPM = Cell(
    Method.TPM_SYNC,
    "both nodes see the same file: no byte of it crosses, and the source's swtpm ends before the guest runs there",
)


_Row = dict[tuple[Role, Situation], Cell]


def _row(role: Role, live: Cell, at_rest: Cell, *, beside: tuple[Cell, Cell] | None = None) -> _Row:
    """The cells of a role; `beside` are those of a volume that has a replica on the target, live and at rest."""
    old = _OLD_DISK if live.method is Method.MIRROR else live
    shared = _SHARED_TPM if live.method is Method.TPM_SYNC else _SHARED
    cells = (live, at_rest, *(beside or (live, at_rest)), old, shared)
    return {(role, situation): cell for situation, cell in zip(Situation, cells, strict=True)}


TABLE: Mapping[tuple[Role, Situation], Cell] = {
    **_row(Role.DISK, _LIVE_DISK, _DISK_AT_REST, beside=(_LIVE_DELTA, _DELTA_AT_REST)),
    **_row(Role.EFIDISK, _LIVE_DISK, _DISK_AT_REST, beside=(_LIVE_DELTA, _DELTA_AT_REST)),
    **_row(Role.TPMSTATE, _LIVE_TPM, _TPM_AT_REST),
    **_row(Role.CLOUDINIT, _COLD, _COLD_AT_REST, beside=(_COLD_BESIDE, _COLD_BESIDE)),
    **_row(Role.UNUSED, _COLD, _COLD_AT_REST, beside=(_COLD_BESIDE, _COLD_BESIDE)),
    **_row(Role.VMSTATE, _COLD, _COLD_AT_REST, beside=(_COLD_BESIDE, _COLD_BESIDE)),
    **_row(Role.CDROM, _LOCAL_ISO, _LOCAL_ISO),
}


def choose_method(volume: VolumeFacts) -> Choice:
    """The cell of the table for a volume."""
    cell = TABLE[volume.role, volume.situation]
    if cell is _DISK_AT_REST and not can_be_one_file(volume.source_kind, volume.target_kind, form=volume.format):
        cell = _CONTENT_AT_REST
    reason = cell.reason.format(device=volume.device)
    if volume.target_format != volume.format and cell.method is not Method.NONE:
        # Nothing of qcow2 but its content goes into a device.
        reason += f"; it becomes {volume.target_format}, all that {KINDS[volume.target_kind].words} holds"
    refusal = Problem(cell.code, reason, cell.hint) if cell.code else None
    return Choice(volume.device, volume.role, cell.method, reason, refusal)


# How a volume reaches its replica, by its role; a CD-ROM stays, and so does what both nodes see.
SYNC_TABLE: Mapping[Role, Cell] = {
    **dict.fromkeys(
        (Role.DISK, Role.EFIDISK),
        Cell(
            Method.DELTA,
            "what was written since the last generation, by a bitmap; where there is none (any more), all of it, or "
            "what differs by comparison if the VM does not run",
        ),
    ),
    Role.TPMSTATE: Cell(
        Method.TPM_SYNC, "only swtpm has it open: a stable reading of the moment that the disks are taken at"
    ),
    **dict.fromkeys(
        (Role.CLOUDINIT, Role.UNUSED, Role.VMSTATE), Cell(Method.COPY, "its file is copied when it looks changed")
    ),
}
_SYNC_OLD_DISK = Cell(
    Method.COPY, "a disk of a snapshot, which QEMU has not open: its file is copied when it looks changed"
)


def choose_sync_method(volume: VolumeFacts) -> Choice | None:
    """How a volume reaches its replica; None for one of which no replica is made."""
    cell = SYNC_TABLE.get(volume.role)
    if volume.shared or cell is None:
        return None
    if not KINDS[volume.target_kind].has_files:
        words = f"{volume.device}: a replica is a file with an overlay, and {KINDS[volume.target_kind].words} has none"
        refusal = Problem("replica_needs_files", words, "Have a folder of the same name on the target.")
        return Choice(volume.device, volume.role, cell.method, cell.reason, refusal)
    if volume.snapshot_only and cell.method is Method.DELTA:
        cell = _SYNC_OLD_DISK
    return Choice(volume.device, volume.role, cell.method, cell.reason)
