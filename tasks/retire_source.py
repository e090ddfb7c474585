"""Phase 9, retire_source (source): the old QEMU and swtpm end, the old volumes go. The guest runs on the target by now.

There is no way back from here, so there is no undo: what fails is tried again until it is done.
"""

from __future__ import annotations

from haulier.errors import NeedsOperator
from haulier.hypervisor import machine
from haulier.hypervisor.images import destroy_image, remove_image, stop_carrier
from haulier.hypervisor.swtpm import stop_swtpm
from haulier.hypervisor.volume_paths import require_inside
from haulier.services.allocations import paths_in_use
from haulier.services.attempts import TransferView
from haulier.services.ledger import TpmCopy, quarantine_path
from models import Phase, TransferMethod
from tasks.celery import app
from tasks.runner import Notes, StepRun, execute


async def run(work: StepRun) -> Notes:
    """Clear the source. Safe to call twice. Raises StepFailed while a process does not end; no volume is freed then."""
    view, place = work.view, work.place
    if view.shares_tpm:
        # It is the target's state: nothing more may be written here, as some do when they see their QEMU go.
        stop_swtpm(place, patience_s=0.0)
    machine.stop_now(place)
    stop_swtpm(place)
    stop_carrier(place)
    for volume in view.transfers:
        require_inside(volume.source_path, volume.source_folder, error=NeedsOperator)
    if view.tpm and not view.tpm.stays:
        _put_tpm_away(work, view.tpm)
    in_use = paths_in_use(work.context, view.source.id)
    for volume in view.by_method(TransferMethod.MIRROR, TransferMethod.COPY):
        # The rows have the last word: whatever an error somewhere else makes of the paths, a VM's volume stays.
        if volume.source_path in in_use:
            raise NeedsOperator("volume_in_use", f"{volume.source_path} is a VM's volume", "Nothing more was freed.")
        remove_image(volume.source_path)
    place.clear()
    return {}


def _put_tpm_away(work: StepRun, tpm: TransferView) -> None:
    """The state that is the VM's no more waits for its end; one in which no TPM was ever made need not."""
    view = work.view
    if view.tpm_identity is None:
        destroy_image(tpm.source_path)
        return
    away = work.node.layout.quarantine / f"{view.vm}-e{view.epoch}-{tpm.source_path.name}"
    # The row names the new place first: whoever looks in between finds the file in one of the two.
    quarantine_path(work.context, TpmCopy(view.vm_id, view.source.id, tpm.source_path), away)
    if tpm.source_path.exists():
        tpm.source_path.rename(away)


@app.task(name=f"haulier.{Phase.RETIRE_SOURCE}")
def retire_source(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run)
