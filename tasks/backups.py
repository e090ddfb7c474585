"""What is sent of a disk that has a replica: what was written since the replica's generation, if a bitmap says that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from haulier.hypervisor.generations import DiskBackup, bitmap_name, read_bitmaps
from haulier.hypervisor.monitor import Monitor
from haulier.services.attempts import TransferView

BitmapOf = Callable[[TransferView], str | None]


def bitmap_of(disk: TransferView) -> str | None:
    """The bitmap that says what a disk's replica on the target lacks; None if there is no replica."""
    return bitmap_name(disk.replica.replication_id, disk.replica.generation) if disk.replica else None


async def backups_to_carrier(
    monitor: Monitor, disks: Sequence[TransferView], *, bitmap: BitmapOf = bitmap_of
) -> list[DiskBackup]:
    """A backup for each disk onto its export of the carrier: since its `bitmap`, where that is there and usable; else
    of all of it.
    """
    usable = await usable_bitmaps(monitor, disks)
    backups = []
    for disk in disks:
        since = bitmap(disk)
        known = since if (disk.device, since) in usable else None
        backups.append(DiskBackup(disk.device, str(disk.role), disk.format, disk.export, known))
    return backups


async def usable_bitmaps(monitor: Monitor, disks: Sequence[TransferView]) -> set[tuple[str, str | None]]:
    """The bitmaps of ours that have missed nothing, each with its device."""
    found = await read_bitmaps(monitor, [disk.device for disk in disks])
    return {(each.device, each.name) for each in found if each.usable}
