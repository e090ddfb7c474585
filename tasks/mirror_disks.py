"""Phase 6, mirror_disks (source): every disk that QEMU writes is mirrored onto the target, side by side, until all are
ready.

A mirror that is ready sends each later write to both sides, as fast as the guest writes; it is finished in the pause,
by the next phase.
"""

from __future__ import annotations

import time

from haulier.hypervisor.disks import Mirror, drop_jobs, wait_until_ready
from haulier.hypervisor.monitor import open_monitor
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.stream import drop_key, ensure_key
from haulier.services.attempts import AttemptView, update_transfers
from models import Phase, Side
from tasks.celery import app
from tasks.deltas import send_all, undo_deltas
from tasks.jobs import watch_jobs
from tasks.runner import Notes, StepRun, execute, reporting


def mirrors_of(view: AttemptView, *, tls: bool) -> list[Mirror]:
    """The mirrors of an attempt. A volume that may not be mirrored is refused while the list is made."""
    port = view.notes[Phase.OPEN_TARGET, Side.TARGET]["nbd_port"] or 0
    return [
        Mirror(volume.device, str(volume.role), NbdServer(view.target.address, port), tls) for volume in view.mirrored
    ]


async def run(work: StepRun) -> Notes:
    """Mirror all disks. Raises StepFailed with QEMU's words when one fails."""
    begun = time.monotonic()
    mirrors = mirrors_of(work.view, tls=work.tls)
    async with open_monitor(work.place.control) as monitor:
        if keys := work.keys():
            await ensure_key(monitor, keys, server=False)
        sent = await send_all(work, monitor, mirrors)
        async with reporting(lambda: watch_jobs(work, monitor, before=sent)):
            await wait_until_ready(monitor, mirrors)
        await watch_jobs(work, monitor, before=sent)
    took = time.monotonic() - begun
    update_transfers(work.context, {volume.id: {"seconds": took} for volume in work.view.mirrored})
    return {}


async def undo(work: StepRun) -> None:
    """Cancel the mirrors, drop their nodes and the key; a QEMU that is gone has none."""
    if work.place.qemu.pid() is not None:
        async with open_monitor(work.place.control) as monitor:
            await drop_jobs(monitor)
            we_stopped = work.view.notes[Phase.MIRROR_DISKS, Side.SOURCE].get("we_stopped", False)
            await undo_deltas(work, monitor, we_stopped=we_stopped)
            await drop_key(monitor)
    if keys := work.keys():
        keys.remove()


@app.task(name=f"haulier.{Phase.MIRROR_DISKS}")
def mirror_disks(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
