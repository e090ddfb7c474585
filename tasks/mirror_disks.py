"""Phase 6, mirror_disks (source): every disk that QEMU writes is mirrored onto the target, side by side, until all are
ready.

A mirror that is ready sends each later write to both sides; it is finished in the pause, by the next phase.
"""

from __future__ import annotations

import time

from haulier.hypervisor.disks import Mirror, drop_jobs, read_progress, start_mirror, wait_until_ready
from haulier.hypervisor.images import NbdServer
from haulier.hypervisor.monitor import Monitor, open_monitor
from haulier.hypervisor.stream import drop_key, ensure_key
from haulier.services.attempts import AttemptView, update_transfer
from models import Phase, Side, TransferMethod
from tasks.celery import app
from tasks.runner import Notes, StepRun, execute, reporting


def mirrors_of(view: AttemptView, *, tls: bool) -> list[Mirror]:
    """The mirrors of an attempt. A volume that may not be mirrored is refused while the list is made."""
    port = view.notes[Phase.OPEN_TARGET, Side.TARGET]["nbd_port"] or 0
    return [
        Mirror(volume.device, str(volume.role), NbdServer(view.target.address, port), tls)
        for volume in view.by_method(TransferMethod.MIRROR)
    ]


async def run(work: StepRun) -> Notes:
    """Mirror all disks. Raises StepFailed with QEMU's words when one fails."""
    begun = time.monotonic()
    mirrors = mirrors_of(work.view, tls=work.tls)
    async with open_monitor(work.place.control) as monitor:
        if keys := work.keys():
            await ensure_key(monitor, keys, server=False)
        for mirror in mirrors:
            await start_mirror(monitor, mirror, max_bytes_per_s=work.context.settings.max_bandwidth_bytes_per_s)
        async with reporting(lambda: _report(work, monitor)):
            await wait_until_ready(monitor, mirrors)
        await _report(work, monitor)
    for volume in work.view.by_method(TransferMethod.MIRROR):
        update_transfer(work.context, volume.id, seconds=time.monotonic() - begun)
    return {}


async def _report(work: StepRun, monitor: Monitor) -> None:
    ids = {volume.device: volume.id for volume in work.view.transfers}
    for each in await read_progress(monitor):
        if each.device in ids:
            update_transfer(work.context, ids[each.device], bytes=each.done, bytes_total=each.total)
            work.progress[each.device] = {"bytes": each.done, "bytes_total": each.total}


async def undo(work: StepRun) -> None:
    """Cancel the mirrors, drop their nodes and the key; a QEMU that is gone has none."""
    if work.place.qemu.pid() is not None:
        async with open_monitor(work.place.control) as monitor:
            await drop_jobs(monitor)
            await drop_key(monitor)
    if keys := work.keys():
        keys.remove()


@app.task(name=f"haulier.{Phase.MIRROR_DISKS}")
def mirror_disks(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
