"""The method table: how a volume crosses, by its role and by where it lies. Nothing else in Haulier asks for a role to
decide this.

`haulier explain` prints the row that applies with its reason, the chain works by it, docs/volumes.md is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from haulier.definition import Role
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
    REPLICATED_LIVE = "replica on the target, live"


@dataclass(frozen=True, slots=True)
class Rule:
    """One cell of the table: a method and why it is this one."""

    method: Method
    reason: str


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """What the table needs to know about a volume."""

    device: str
    role: Role
    shared: bool = False
    replica_on_target: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The method for one volume, in words; without a method the migration is refused for `refusal`."""

    device: str
    role: Role
    method: Method
    reason: str
    refusal: Problem | None = None


_WHOLE_DISK = Rule(Method.MIRROR, "QEMU writes it: mirrored over NBD until the switch-over, finished in the pause")
_ONTO_FRESH = Rule(
    Method.MIRROR, "QEMU writes it: mirrored as a whole beside the replica, which is dropped after the hand-over"
)
_TPM = Rule(
    Method.TPM_SYNC,
    "only swtpm has it open, not QEMU: copied once, then carried in the stream of the devices, and proved in the pause",
)
_COLD = Rule(Method.COPY, "QEMU does not write it while the guest runs: copied once")

TABLE: Mapping[tuple[Role, Situation], Rule] = {
    (Role.DISK, Situation.LOCAL_LIVE): _WHOLE_DISK,
    (Role.DISK, Situation.REPLICATED_LIVE): _ONTO_FRESH,
    (Role.EFIDISK, Situation.LOCAL_LIVE): _WHOLE_DISK,
    (Role.EFIDISK, Situation.REPLICATED_LIVE): _ONTO_FRESH,
    (Role.TPMSTATE, Situation.LOCAL_LIVE): _TPM,
    (Role.TPMSTATE, Situation.REPLICATED_LIVE): _TPM,
    (Role.CLOUDINIT, Situation.LOCAL_LIVE): _COLD,
    (Role.CLOUDINIT, Situation.REPLICATED_LIVE): _COLD,
    (Role.UNUSED, Situation.LOCAL_LIVE): _COLD,
    (Role.UNUSED, Situation.REPLICATED_LIVE): _COLD,
    (Role.VMSTATE, Situation.LOCAL_LIVE): _COLD,
    (Role.VMSTATE, Situation.REPLICATED_LIVE): _COLD,
}


def choose_method(volume: VolumeFacts) -> Choice:
    """The row of the table for a running VM's volume, or the reason why there is none."""
    if volume.shared:
        return _refused(
            volume, "shared_storage_unsupported", "shared storage is not supported yet", "Use local storage."
        )
    if volume.role is Role.CDROM:
        return _refused(
            volume, "cdrom_local", f"{volume.device} holds an ISO image of this node only", "Eject it, then migrate."
        )
    situation = Situation.REPLICATED_LIVE if volume.replica_on_target else Situation.LOCAL_LIVE
    rule = TABLE[volume.role, situation]
    return Choice(volume.device, volume.role, rule.method, rule.reason)


def _refused(volume: VolumeFacts, code: str, message: str, hint: str) -> Choice:
    return Choice(volume.device, volume.role, Method.NONE, message, Problem(code, message, hint))
