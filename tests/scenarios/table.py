"""The table: which VM, what is asked for, what happens meanwhile, and how both sides must end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tests.scenarios.configurations import CONFIGURATIONS
from tests.scenarios.happenings import HAPPENINGS


class Wish(StrEnum):
    """What is asked for."""

    LIVE = "migrate live"
    OFFLINE = "migrate offline"
    MAPPED = "migrate live onto another storage"
    ONTO_LVM = "migrate live onto LVM"
    ONTO_LVM_AT_REST = "migrate offline onto LVM"
    ONTO_THIN = "migrate live onto thin LVM"
    ONTO_THIN_AT_REST = "migrate offline onto thin LVM"
    ONTO_DEVICES = "migrate live onto prepared devices"
    ONTO_DEVICES_AT_REST = "migrate offline onto prepared devices"
    OFF_LVM = "migrate live from LVM into files"
    OFF_LVM_AT_REST = "migrate offline from LVM into files"
    SYNC = "replicate"
    SYNC_AT_REST = "replicate a stopped VM"


class Ends(StrEnum):
    """Where the VM is afterwards, and whether anything was touched."""

    THERE = "it is on the target"
    HERE = "it is on the source, as if nothing had been"
    REFUSED = "it was refused, and nothing was touched"
    LOST_THERE = "it is lost on the target, with its newest disks and TPM"
    LOST_HERE = "it is lost on the source, with its newest disks and TPM"
    COPIED = "it is where it was, and its replica is the next generation"


@dataclass(frozen=True)
class Scenario:
    """One row. `code` is that of the error which people are told."""

    configuration: str
    wish: Wish
    happening: str
    ends: Ends
    code: str | None = None

    def __post_init__(self) -> None:
        assert self.configuration in CONFIGURATIONS and self.happening in HAPPENINGS, self

    def __str__(self) -> str:
        return f"{self.configuration}: {self.wish}: {self.happening}"


L, O, M, S, R = Wish.LIVE, Wish.OFFLINE, Wish.MAPPED, Wish.SYNC, Wish.SYNC_AT_REST  # noqa: E741 - a table reads better
THERE, HERE, REFUSED, COPIED = Ends.THERE, Ends.HERE, Ends.REFUSED, Ends.COPIED

TABLE = tuple(
    Scenario(*row)
    for row in (
        # Every kind of volume, live and offline.
        ("disk and TPM", L, "nothing", THERE),
        ("disk and TPM", O, "nothing", THERE),
        ("disk alone", L, "nothing", THERE),
        ("TPM alone", L, "nothing", THERE),
        ("TPM alone", O, "nothing", THERE),
        ("qcow2", L, "nothing", THERE),
        ("two disks", L, "nothing", THERE),
        ("two disks", O, "nothing", THERE),
        ("cloud-init", L, "nothing", THERE),
        ("unused", L, "nothing", THERE),
        ("pending disk", L, "nothing", THERE),
        ("pending disk", O, "nothing", THERE),
        ("saved RAM", L, "nothing", THERE),
        ("disk of a snapshot", L, "nothing", REFUSED, "snapshot_only"),
        ("disk of a snapshot", O, "nothing", REFUSED, "snapshot_only"),
        ("internal snapshot", L, "nothing", REFUSED, "internal_snapshots"),
        ("internal snapshot", O, "nothing", THERE),
        ("empty drive", L, "nothing", THERE),
        ("local ISO", L, "nothing", REFUSED, "cdrom_local"),
        ("local ISO", O, "nothing", REFUSED, "cdrom_local"),
        ("shared ISO", L, "nothing", THERE),
        ("shared disk", L, "nothing", THERE),
        ("shared disk", O, "nothing", THERE),
        ("shared TPM", L, "nothing", THERE),
        ("shared TPM", O, "nothing", THERE),
        ("all shared", L, "nothing", THERE),
        ("disk of alpha's storage", L, "nothing", REFUSED, "storage_missing"),
        ("disk of alpha's storage", M, "nothing", THERE),
        ("two names", L, "nothing", REFUSED, "one_file_two_names"),
        ("custom CPU", L, "nothing", THERE),
        ("UEFI", L, "nothing", THERE),
        ("UEFI", O, "nothing", THERE),
        ("named cloud-init", L, "its name is taken on the target", REFUSED, "name_taken"),
        # Storages that are no folders, and formats that they cannot hold.
        ("disk and TPM", Wish.ONTO_LVM, "nothing", THERE),
        ("disk and TPM", Wish.ONTO_LVM_AT_REST, "nothing", THERE),
        ("two disks", Wish.ONTO_THIN, "nothing", THERE),
        ("two disks", Wish.ONTO_THIN_AT_REST, "nothing", THERE),
        ("unused", Wish.ONTO_LVM, "nothing", THERE),
        ("saved RAM", Wish.ONTO_LVM, "nothing", THERE),
        ("UEFI", Wish.ONTO_LVM, "nothing", THERE),
        ("qcow2", Wish.ONTO_DEVICES, "devices are provided", THERE),
        ("qcow2", Wish.ONTO_DEVICES_AT_REST, "devices are provided", THERE),
        ("qcow2", Wish.ONTO_DEVICES, "devices are too small", REFUSED, "device_too_small"),
        ("qcow2", Wish.ONTO_DEVICES, "nothing", REFUSED, "device_missing"),
        ("on LVM", L, "nothing", THERE),
        ("on LVM", O, "nothing", THERE),
        ("on LVM", Wish.OFF_LVM, "nothing", THERE),
        ("on LVM", Wish.OFF_LVM_AT_REST, "nothing", THERE),
        ("on thin LVM", L, "nothing", THERE),
        ("on thin LVM", O, "nothing", THERE),
        ("UEFI on LVM", L, "nothing", THERE),
        ("internal snapshot", Wish.ONTO_LVM_AT_REST, "nothing", REFUSED, "internal_snapshots"),
        ("on LVM", S, "nothing", REFUSED, "replica_needs_files"),
        ("replicated", Wish.ONTO_LVM, "nothing", THERE),
        ("on LVM", L, "target's volume group is not there", REFUSED, "storage_missing"),
        ("on LVM", L, "target's lvs fails", HERE, "storage_missing"),
        ("on LVM", L, "target's lvcreate fails", HERE, "volume_not_made"),
        ("on LVM", O, "target's lvcreate fails", HERE, "volume_not_made"),
        ("on LVM", L, "target's lvremove fails for a while", HERE, "target_failed"),
        ("on LVM", L, "source's lvremove fails for a while", THERE),
        ("on LVM", L, "target's QEMU cannot load", HERE, "target_failed"),
        ("on LVM", L, "target's TPM keeps an older state", HERE, "tpm_proof_failed"),
        ("on LVM", L, "target's worker is killed after the commit", THERE),
        ("on LVM", L, "target's QEMU is killed after the commit", Ends.LOST_THERE),
        ("on LVM", O, "carrier is killed", HERE, "copy_failed"),
        ("on LVM", O, "it is cancelled while it copies", HERE),
        # What stands in the way before anything is touched.
        ("clone", L, "nothing", REFUSED, "volume_is_clone"),
        ("clone", O, "nothing", REFUSED, "volume_is_clone"),
        ("content in another file", L, "nothing", REFUSED, "volume_has_data_file"),
        ("content in another file", O, "nothing", REFUSED, "volume_has_data_file"),
        ("disk of the host", L, "nothing", REFUSED, "storage_missing"),
        ("disk and TPM", L, "its size was not recorded", REFUSED, "size_differs"),
        ("disk and TPM", L, "a stop is under way", REFUSED, "operation_open"),
        ("disk and TPM", L, "source's QEMU does not answer", REFUSED, "guest_gone"),
        ("disk and TPM", O, "disk has another size", REFUSED, "size_differs"),
        ("disk and TPM", O, "disk is not there", REFUSED, "volume_missing"),
        ("disk and TPM", L, "somebody's block job runs", REFUSED, "block_job_running"),
        ("disk and TPM", L, "a bitmap of nobody is left", THERE),
        ("disk and TPM", L, "a file of nobody lies beside", THERE),
        ("disk and TPM", L, "guest is paused", THERE),
        # Room cannot be made, or not be given back.
        ("two disks", L, "a file is in the first disk's way", HERE, "volume_exists"),
        ("two disks", L, "a file is in the second disk's way", HERE, "volume_exists"),
        ("two disks", O, "a file is in the second disk's way", HERE, "volume_exists"),
        ("disk and TPM", L, "freeing fails", HERE, "target_failed"),
        # Copies and mirrors fail.
        ("disk and TPM", O, "carrier is killed", HERE, "copy_failed"),
        ("cloud-init", L, "carrier is killed", HERE, "copy_failed"),
        ("disk and TPM", L, "TPM's copy is spoilt", HERE, "tpm_copy_differs"),
        ("disk and TPM", O, "TPM's copy is spoilt", HERE, "tpm_copy_differs"),
        ("two disks", L, "target's QEMU is killed before the mirrors", HERE, "target_unreachable"),
        # The target fails, early and late.
        ("disk and TPM", L, "target's QEMU does not start", HERE, "qemu_not_started"),
        ("disk and TPM", L, "target's QEMU cannot load", HERE, "target_failed"),
        ("disk and TPM", L, "target's swtpm does not start", HERE, "swtpm_not_started"),
        ("disk and TPM", L, "target's TPM keeps an older state", HERE, "tpm_proof_failed"),
        ("shared TPM", L, "target's QEMU cannot load", HERE, "target_failed"),
        ("disk and TPM", L, "target's QEMU is killed in the pause", HERE, "target_failed"),
        ("disk and TPM", L, "target's QEMU is killed when it has loaded", HERE, "target_failed"),
        ("disk and TPM", L, "target's QEMU hangs when it has loaded", HERE, "qmp_silent"),
        ("disk and TPM", L, "target's swtpm is killed when it has loaded", HERE, "target_failed"),
        ("shared TPM", L, "target's QEMU is killed when it has loaded", HERE, "target_failed"),
        ("disk and TPM", L, "target's QEMU is killed after the commit", Ends.LOST_THERE),
        ("shared TPM", L, "target's QEMU is killed after the commit", Ends.LOST_THERE),
        ("disk and TPM", L, "target's worker is killed before the commit", HERE, "worker_lost"),
        ("disk and TPM", L, "target's worker is killed after the commit", THERE),
        ("shared TPM", L, "target's worker is killed after the commit", THERE),
        ("disk and TPM", L, "source's worker is killed in the pause", HERE, "worker_lost"),
        ("two disks", L, "source's worker is killed at the mirrors", HERE, "worker_lost"),
        ("disk and TPM", L, "it is cancelled at the mirrors", HERE),
        ("disk and TPM", L, "it is cancelled before the commit", HERE),
        ("disk and TPM", O, "it is cancelled while it copies", HERE),
        # Two things at once.
        ("disk and TPM", L, "another migration is asked for", THERE),
        ("disk and TPM", L, "a stop is asked for", THERE),
        ("disk and TPM", L, "a sync is asked for", THERE),
        # Replication.
        ("two disks", S, "nothing", COPIED),
        ("two disks", R, "nothing", COPIED),
        ("internal snapshot", R, "nothing", COPIED),
        ("shared disk", S, "nothing", COPIED),
        ("UEFI", S, "nothing", COPIED),
        ("replicated", S, "nothing", COPIED),
        ("replicated", R, "nothing", COPIED),
        ("replicated", S, "it is cancelled while it sends", HERE),
        ("replicated", S, "source's worker is killed while it sends", HERE, "worker_lost"),
        ("replicated", S, "target's worker is killed while it takes", HERE, "worker_lost"),
        ("replicated", S, "target's carrier is killed while it sends", HERE, "target_unreachable"),
        ("replicated, raw", S, "source's QEMU is killed while it sends", Ends.LOST_HERE, "qemu_gone"),
        ("replicated", S, "somebody's block job runs", REFUSED, "block_job_running"),
        # Migration onto a replica.
        ("replicated", L, "nothing", THERE),
        ("replicated", O, "nothing", THERE),
        ("replicated, UEFI", L, "nothing", THERE),
        ("replicated, cloud-init", L, "nothing", THERE),
        ("replicated", L, "guest is paused", THERE),
        ("replicated", L, "target's QEMU does not start", HERE, "qemu_not_started"),
        ("replicated", L, "target's QEMU cannot load", HERE, "target_failed"),
        ("replicated", L, "target's TPM keeps an older state", HERE, "tpm_proof_failed"),
        ("replicated", L, "target's QEMU is killed before the mirrors", HERE, "target_unreachable"),
        ("replicated", L, "target's QEMU is killed in the pause", HERE, "target_failed"),
        ("replicated", L, "target's QEMU is killed when it has loaded", HERE, "target_failed"),
        ("replicated", L, "target's QEMU is killed after the commit", Ends.LOST_THERE),
        ("replicated", L, "it is cancelled before the commit", HERE),
        ("replicated", O, "TPM's copy is spoilt", HERE, "tpm_copy_differs"),
        ("replicated", O, "it is cancelled while it copies", HERE),
        ("replicated", O, "carrier is killed", HERE, "target_unreachable"),
        ("replicated, UEFI", O, "nothing", THERE),
        ("replicated, cloud-init", O, "nothing", THERE),
        ("replicated, internal snapshot", O, "nothing", REFUSED, "internal_snapshots"),
    )
)
