"""What is sent of a disk that has a replica: what was written since the replica's generation, if a bitmap says that, or
what differs, if that was looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from haulier.hypervisor.differences import COMPARED
from haulier.hypervisor.generations import DiskBackup, bitmap_name, read_bitmaps
from haulier.hypervisor.monitor import Monitor
from haulier.services.attempts import TransferView


def bitmap_of(disk: TransferView) -> str | None:
    """The bitmap that says what a disk's replica on the target lacks; None if there is no replica."""
    return bitmap_name(disk.replica.replication_id, disk.replica.generation) if disk.replica else None


async def backups_to_carrier(monitor: Monitor, disks: Sequence[TransferView]) -> list[DiskBackup]:
    """A backup for each disk onto its export of the carrier: of what its bitmap says, or else the comparison with its
    replica; of all of it where there is neither.
    """
    usable = await usable_bitmaps(monitor, disks)
    backups = []
    for disk in disks:
        known = [name for name in (bitmap_of(disk), COMPARED) if (disk.device, name) in usable]
        since = known[0] if known else None
        backups.append(DiskBackup(disk.device, str(disk.role), disk.format, disk.export, since))
    return backups


async def usable_bitmaps(monitor: Monitor, disks: Sequence[TransferView]) -> set[tuple[str, str | None]]:
    """The bitmaps of ours that have missed nothing, each with its device."""
    found = await read_bitmaps(monitor, [disk.device for disk in disks])
    return {(each.device, each.name) for each in found if each.usable}
