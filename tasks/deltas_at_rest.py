"""A disk of a VM that does not run crosses as the difference to its replica: one last sync.

Nobody writes, so there is one round, no mirror, and nothing that would have to be of one moment. What arrives lies on
an overlay over the replica, which is not touched before the hand-over.
"""

from __future__ import annotations

import time

from haulier.fault_points import fault_point
from haulier.hypervisor.devices import PREFIX, node_name
from haulier.hypervisor.disks import wait_until_done
from haulier.hypervisor.generations import (
    begin_generation,
    bitmap_name,
    connect_backups,
)
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.overlays import record_writes
from haulier.hypervisor.reader import ReadDisk, open_reader, stop_reader
from haulier.services.attempts import update_transfer
from models import Phase, Side, TransferMethod
from tasks.backups import backups_to_carrier
from tasks.comparing import mark_what_differs
from tasks.jobs import watch_jobs
from tasks.runner import StepRun, reporting

_LATER = f"{PREFIX}last-sync"


async def send_differences(work: StepRun) -> None:
    """On the source: send what the replicas lack. Raises StepFailed with the words of who failed; the disks and their
    bitmaps are as they were.
    """
    view, disks = work.view, work.view.by_method(TransferMethod.DELTA)
    if not disks:
        return
    begun = time.monotonic()
    server = NbdServer(view.target.address, view.notes[Phase.RESERVE, Side.TARGET]["carrier_port"])
    opened = [ReadDisk(disk.device, disk.source_image) for disk in disks]
    async with open_reader(work.place, opened, keys=work.keys()) as monitor:
        await mark_what_differs(work, monitor)
        backups = await backups_to_carrier(monitor, disks)
        await connect_backups(monitor, backups, server=server, tls=work.tls)
        at_most = await work.allowance.pace(jobs=len(backups))
        jobs = await begin_generation(monitor, backups, bitmap=_LATER, max_bytes_per_s=at_most, lasting=False)
        async with reporting(lambda: watch_jobs(work, monitor)):
            sent = await wait_until_done(monitor, jobs)
    took = time.monotonic() - begun
    for disk in disks:
        update_transfer(work.context, disk.id, bytes=sent[disk.device], seconds=took)


async def record_from_now_on(work: StepRun) -> None:
    """On the target, when the VM is its own: what is written from now on is what the source's volumes lack, which
    become its replica. Safe to call twice. Only an image that has room for a bitmap has one.
    """
    view, turn = work.view, work.view.turn
    disks = [disk for disk in view.by_method(TransferMethod.DELTA) if disk.format == "qcow2"]
    if turn is None or not disks:
        return
    # An earlier try may have died with its reader at work.
    stop_reader(work.place)
    opened = [ReadDisk(disk.device, disk.target_image) for disk in disks]
    async with open_reader(work.place, opened, keys=None) as monitor:
        await fault_point("hand_over.recording")
        nodes = [(node_name(disk.device), True) for disk in disks]
        await record_writes(monitor, nodes, bitmap=bitmap_name(turn.replication_id, turn.generation))
