"""Generations: what all disks of a VM held at one moment, brought over NBD to another node while the guest goes on.

For each generation a disk has a bitmap in the QEMU that writes it, which says what was written since. The bitmap of the
last generation is never cleared: if a sync comes to nothing, it still says all that the next one must send.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from haulier.hypervisor.devices import PREFIX, node_name
from haulier.hypervisor.disks import connect_export, require_mirrorable
from haulier.hypervisor.monitor import Monitor
from haulier.hypervisor.nbd import NbdServer

# The cluster of a qcow2, and what QEMU's backup takes for a target over NBD: nothing smaller would be sent anyway.
GRANULARITY = 64 << 10
"""So many bytes of a disk have one bit."""
_OF_GENERATION = re.compile(rf"{PREFIX}r(\d+)-g\d+")


@dataclass(frozen=True, slots=True)
class DiskBackup:
    """One disk on its way: the device, its role and format, by what name the target serves it.

    `since` is the bitmap that says what is to be sent; None sends all of it.
    """

    device: str
    role: str
    format: str
    export: str
    since: str | None = None

    def __post_init__(self) -> None:
        require_mirrorable(self.device, self.role)

    @property
    def node(self) -> str:
        """The target's export as a block node of the source."""
        return f"{PREFIX}{self.device}"


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A bitmap of ours on a device. One that is not `usable` has missed writes, for example because its QEMU was
    killed.
    """

    device: str
    name: str
    usable: bool
    dirty_bytes: int

    @property
    def replication(self) -> int | None:
        """The replication whose generation it is of; None for one that has another purpose."""
        match = _OF_GENERATION.fullmatch(self.name)
        return int(match[1]) if match else None


def bitmap_name(replication_id: int, generation: int) -> str:
    """The bitmap that says what was written since this generation."""
    return f"{PREFIX}r{replication_id}-g{generation}"


async def read_bitmaps(monitor: Monitor, devices: Collection[str]) -> tuple[Bitmap, ...]:
    """All bitmaps of ours on these devices, of whatever replication."""
    device_of = {node_name(device): device for device in devices}
    nodes = await monitor.execute("query-named-block-nodes", flat=True)
    return tuple(
        Bitmap(device_of[node["node-name"]], found["name"], _is_usable(found), found["count"])
        for node in nodes
        if node["node-name"] in device_of
        for found in node.get("dirty-bitmaps", ())
        if found.get("name", "").startswith(PREFIX)
    )


def _is_usable(found: dict[str, Any]) -> bool:
    return bool(found["recording"] and not found.get("inconsistent"))


async def drop_bitmaps(monitor: Monitor, devices: Collection[str], *, of: int, keep: Collection[str] = ()) -> None:
    """Remove the bitmaps of a replication from these devices, but for those to `keep`. Safe to call twice."""
    for bitmap in await read_bitmaps(monitor, devices):
        if bitmap.replication == of and bitmap.name not in keep:
            await drop_bitmap(monitor, bitmap.device, bitmap.name)


async def drop_bitmaps_of_others(monitor: Monitor, devices: Collection[str], *, live: Collection[int]) -> None:
    """Remove the bitmaps of replications that are not `live` any more. Safe to call twice."""
    for bitmap in await read_bitmaps(monitor, devices):
        if bitmap.replication is not None and bitmap.replication not in live:
            await drop_bitmap(monitor, bitmap.device, bitmap.name)


async def drop_bitmap(monitor: Monitor, device: str, name: str) -> None:
    """Remove one bitmap from a device. Raises StepFailed when it is not there."""
    await monitor.execute("block-dirty-bitmap-remove", node=node_name(device), name=name)


async def connect_backups(monitor: Monitor, backups: Sequence[DiskBackup], *, server: NbdServer, tls: bool) -> None:
    """Open the target's exports. Raises StepFailed when the target does not answer."""
    for backup in backups:
        await connect_export(monitor, backup.node, backup.export, server=server, tls=tls)


async def begin_generation(
    monitor: Monitor,
    backups: Sequence[DiskBackup],
    *,
    bitmap: str,
    number: int = 0,
    max_bytes_per_s: int = 0,
    lasting: bool = True,
) -> list[str]:
    """Take the moment, of all disks in one transaction: `bitmap` records what is written from now on, and what the
    disks hold now is sent (0: as fast as it goes). Returns the jobs that do it.

    `number` tells apart the tries of one conversation. A bitmap that is `lasting` is kept in the image, where that has
    room for one. Raises StepFailed with QEMU's words; nothing was begun then. The guest goes on: what it overwrites is
    sent before.
    """
    jobs = [f"{each.node}.{number}" for each in backups]
    actions = [
        action
        for each, job in zip(backups, jobs, strict=True)
        for action in (_add_bitmap(each, bitmap, lasting=lasting), _send(each, job, max_bytes_per_s))
    ]
    if actions:
        await monitor.execute("transaction", actions=actions)
    return jobs


def _add_bitmap(backup: DiskBackup, bitmap: str, *, lasting: bool) -> dict[str, Any]:
    # A raw image has no room for one: it is lost with its QEMU.
    return adding_bitmap(node_name(backup.device), bitmap, persistent=lasting and backup.format == "qcow2")


def adding_bitmap(node: str, bitmap: str, *, persistent: bool) -> dict[str, Any]:
    """The action of a transaction that begins to record in a bitmap what is written to a block node."""
    options = {"granularity": GRANULARITY, "persistent": persistent}
    return {"type": "block-dirty-bitmap-add", "data": {"node": node, "name": bitmap, **options}}


def _send(backup: DiskBackup, job: str, max_bytes_per_s: int) -> dict[str, Any]:
    since = {"sync": "bitmap", "bitmap": backup.since, "bitmap-mode": "never"} if backup.since else {"sync": "full"}
    ends = {"device": node_name(backup.device), "target": backup.node}
    return {"type": "blockdev-backup", "data": {"job-id": job, **ends, "speed": max_bytes_per_s, **since}}
