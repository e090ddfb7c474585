"""Phase 3, sync_tpm (source): a stable copy of the TPM's state goes to the target, and the TPM is asked who it is.

The copy is the fallback and the proof that the target can read such a state; what the guest changes from now on crosses
in the stream of the devices and is proved in the pause (docs/tpm.md); of a VM that does not run, the copy is all there
is. No swtpm has the target's volume open yet, and no QEMU ever has.
"""

from __future__ import annotations

import time
from pathlib import Path

from haulier.definition.storage import Image
from haulier.errors import StepFailed
from haulier.hypervisor.carrier import RemoteExport, send_file
from haulier.hypervisor.images import destroy_image
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.storage import driver_of
from haulier.hypervisor.tpm_identity import forget_scratch, read_identity
from haulier.hypervisor.tpm_state import TpmState, read_state
from haulier.services.attempts import TransferView, update_transfer
from haulier.services.ledger import TpmCopy, record_active
from models import Phase, Side
from tasks.celery import app
from tasks.runner import Notes, StepRun, execute


async def run(work: StepRun) -> Notes:
    """Copy and recognise. Raises StepFailed when the state is blank, unreadable or not the recorded TPM's."""
    view, tpm = work.view, work.view.tpm
    if tpm is None:
        return {}
    driver_of(tpm.source_at).require(tpm.source_path)
    begun = time.monotonic()
    state = read_state(tpm.source_path)
    identity = recognise(work, state)
    if view.offline and identity is not None:
        # A VM that has never been started has no row for its TPM yet, and a quarantine knows only what has one.
        copy_here = TpmCopy(view.vm_id, view.source.id, tpm.source_path)
        record_active(work.context, copy_here, epoch=view.epoch, digest=state.digest, identity=identity)
    if not tpm.stays:
        await send_state(work, tpm, state)
    length = 0 if tpm.stays else len(state.container)
    update_transfer(
        work.context,
        tpm.id,
        digest_source=identity and state.digest,  # of nothing there is nothing to compare
        identity_source=identity,
        bytes=length,
        bytes_total=length,
        seconds=time.monotonic() - begun,
    )
    return {"digest": state.digest, "identity": identity}


async def send_state(work: StepRun, tpm: TransferView, state: TpmState) -> None:
    """Copy a reading of the state into the target's carrier. Raises StepFailed with qemu-img's words."""
    view, copy = work.view, scratch_copy(work)
    try:
        copy.touch(mode=0o600)
        # swtpm shrinks its file, and a device may be larger: the copy gets the volume's size.
        copy.write_bytes(state.container.ljust(tpm.size_bytes, b"\0")[: tpm.size_bytes])
        port = view.notes[Phase.RESERVE, Side.TARGET]["carrier_port"]
        export = RemoteExport(NbdServer(view.target.address, port), tpm.export, work.keys())
        zeroed = tpm.target_at.facts.is_zeroed
        await send_file(Image(copy), export, report=work.meter(tpm.device, tpm.size_bytes), onto_zeroes=zeroed)
    finally:
        destroy_image(copy)


def recognise(work: StepRun, state: TpmState) -> str | None:
    """Who the TPM is; None if there is none yet, of a VM that has never been started.

    Raises StepFailed when the state is blank, unreadable or not the recorded TPM's.
    """
    view = work.view
    if state.is_blank and view.offline and view.tpm_identity is None:
        return None
    if state.is_blank:
        raise StepFailed("tpm_state_blank", f"the TPM state of {view.vm} is blank", "Find the right volume.")
    identity = read_identity(state.container, swtpm=work.context.settings.swtpm, scratch=work.place.run)
    if view.tpm_identity not in (None, identity):
        raise StepFailed(
            "tpm_identity_differs", f"the TPM of {view.vm} is not the one in the ledger", "Compare `haulier vm show`."
        )
    return identity


def scratch_copy(work: StepRun) -> Path:
    """What is sent lies here meanwhile, for qemu-img to read; an undo destroys it."""
    return work.place.run / f"tpm-{work.view.key}"


async def undo(work: StepRun) -> None:
    """The copy on the target is freed by `reserve`; here the key is left, and scratch copies of a killed worker."""
    forget_copies(work)


def forget_copies(work: StepRun) -> None:
    """Nothing of the TPM's state is left here but the state, and no key. Safe to call twice."""
    destroy_image(scratch_copy(work))
    forget_scratch(work.place.run)
    if keys := work.keys():
        keys.remove()
    if work.view.offline:
        work.place.clear()


@app.task(name=f"haulier.{Phase.SYNC_TPM}")
def sync_tpm(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
