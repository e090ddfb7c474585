"""Phase 4, copy_cold (source): the volumes that QEMU does not write are copied once, one by one.

While the guest runs these are cloud-init, unused volumes and saved RAM; of a VM that does not run, all of them, or what
a replica on the target lacks.
"""

from __future__ import annotations

import time

from haulier.hypervisor.carrier import RemoteExport, send_file
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.reader import stop_reader
from haulier.hypervisor.storage import driver_of
from haulier.services.attempts import update_transfer
from models import Phase, Side
from tasks.celery import app
from tasks.deltas_at_rest import send_differences
from tasks.runner import Notes, StepRun, execute


async def run(work: StepRun) -> Notes:
    """Copy one after the other.

    Raises StepFailed with qemu-img's words; the target's volumes are then worth nothing.
    """
    await copy_volumes(work)
    if work.view.offline:
        await send_differences(work)
    return {}


async def copy_volumes(work: StepRun) -> None:
    """Copy what is to be copied of an attempt into the target's carrier. Raises StepFailed with qemu-img's words."""
    view = work.view
    for volume in view.copied:
        driver_of(volume.source_at).require(volume.source_path)
        begun, length = time.monotonic(), view.file_bytes(volume)
        port = view.notes[Phase.RESERVE, Side.TARGET]["carrier_port"]
        export = RemoteExport(NbdServer(view.target.address, port), volume.export, work.keys())
        async with work.allowance.copying() as at_most:
            await send_file(
                volume.sent,
                export,
                max_bytes_per_s=at_most,
                onto_zeroes=volume.target_at.facts.is_zeroed,
                report=work.meter(volume.device, length),
            )
        took = time.monotonic() - begun
        update_transfer(work.context, volume.id, bytes=length, bytes_total=length, seconds=took)


async def undo(work: StepRun) -> None:
    """The copies are freed by `reserve`; here a reader is ended that its worker has left."""
    if work.view.offline:
        stop_reader(work.place)
        work.place.forget_digests()


@app.task(name=f"haulier.{Phase.COPY_COLD}")
def copy_cold(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
