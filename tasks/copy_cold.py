"""Phase 4, copy_cold (source): the volumes that QEMU does not write while the guest runs are copied once."""

from __future__ import annotations

import time

from haulier.hypervisor.images import NbdServer, RemoteExport, send_image
from haulier.hypervisor.volume_paths import require_inside
from haulier.services.attempts import update_transfer
from models import Phase, Side, TransferMethod
from tasks.celery import app
from tasks.runner import Notes, StepRun, execute


async def run(work: StepRun) -> Notes:
    """Copy one after the other.

    Raises StepFailed with qemu-img's words; the target's volumes are then worth nothing.
    """
    view, at_most = work.view, work.context.settings.max_bandwidth_bytes_per_s
    for volume in view.by_method(TransferMethod.COPY):
        require_inside(volume.source_path, volume.source_folder)
        begun = time.monotonic()
        port = view.notes[Phase.RESERVE, Side.TARGET]["carrier_port"]
        export = RemoteExport(NbdServer(view.target.address, port), volume.device, work.keys())
        await send_image(
            volume.source_path,
            export,
            format=volume.format,
            max_bytes_per_s=at_most,
            report=work.meter(volume.device, volume.size_bytes),
        )
        update_transfer(work.context, volume.id, bytes=volume.size_bytes, seconds=time.monotonic() - begun)
    return {}


async def undo(work: StepRun) -> None:
    """The copies are freed by `reserve`."""
    del work


@app.task(name=f"haulier.{Phase.COPY_COLD}")
def copy_cold(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
