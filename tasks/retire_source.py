"""Phase 9, retire_source (source): the old QEMU and swtpm end, the old volumes go. The guest runs on the target by now.

There is no way back from here, so there is no undo: what fails is tried again until it is done.
"""

from __future__ import annotations

from haulier.errors import NeedsOperator
from haulier.hypervisor import machine
from haulier.hypervisor.images import destroy_image, remove_image, stop_carrier
from haulier.hypervisor.swtpm import stop_swtpm
from haulier.hypervisor.volume_paths import require_inside
from haulier.services.attempts import paths_in_use
from haulier.services.ledger import TpmCopy, quarantine_path
from models import Phase, TransferMethod
from tasks.celery import app
from tasks.runner import Notes, StepRun, execute


async def run(work: StepRun) -> Notes:
    """Clear the source. Safe to call twice. Raises StepFailed while a process does not end; no volume is freed then."""
    view, place = work.view, work.place
    machine.stop_now(place)
    stop_swtpm(place)
    stop_carrier(place)
    for volume in view.transfers:
        require_inside(volume.source_path, volume.source_folder, error=NeedsOperator)
    if view.tpm and view.tpm_identity is None:
        # No TPM was ever made there.
        destroy_image(view.tpm.source_path)
    elif view.tpm:
        copy = TpmCopy(view.vm_id, view.source.id, view.tpm.source_path)
        away = work.node.layout.quarantine / f"{view.vm}-e{view.epoch}-{view.tpm.source_path.name}"
        # The row names the new place first: whoever looks in between finds the file in one of the two.
        quarantine_path(work.context, copy, away)
        if view.tpm.source_path.exists():
            view.tpm.source_path.rename(away)
    in_use = paths_in_use(work.context, view.source.id)
    for volume in view.by_method(TransferMethod.MIRROR, TransferMethod.COPY):
        # The rows have the last word: whatever an error somewhere else makes of the paths, a VM's volume stays.
        if volume.source_path in in_use:
            raise NeedsOperator("volume_in_use", f"{volume.source_path} is a VM's volume", "Nothing more was freed.")
        remove_image(volume.source_path)
    place.clear()
    return {}


@app.task(name=f"haulier.{Phase.RETIRE_SOURCE}")
def retire_source(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run)
