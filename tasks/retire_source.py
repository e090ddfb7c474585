"""Phase 9, retire_source (source): the old QEMU and swtpm end, the old volumes go. The guest runs on the target by now.

There is no way back from here, so there is no undo: what fails is tried again until it is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from haulier.errors import NeedsOperator
from haulier.hypervisor import machine
from haulier.hypervisor.carrier import stop_carrier
from haulier.hypervisor.images import copy_state, destroy_image, flush_folder
from haulier.hypervisor.storage import driver_of
from haulier.hypervisor.swtpm import stop_swtpm
from haulier.hypervisor.tpm_state import read_state
from haulier.services.attempts import AttemptView, TransferView, Turn, require_tpm_transfer
from haulier.services.ledger import TpmCopy, drop_reserved, quarantine_path, reserve_copy
from haulier.services.replicas import adopt_source, left_behind
from haulier.services.transfers import made_by
from models import Phase, Side, TransferMethod
from tasks.celery import app
from tasks.freeing import Freeing
from tasks.runner import Notes, StepRun, execute


async def run(work: StepRun) -> Notes:
    """Clear the source. Safe to call twice. Raises StepFailed while a process does not end; no volume is freed then.

    Of a replicated VM the volumes stay, as the replica that is kept here from now on.
    """
    view, place = work.view, work.place
    for volume in view.transfers:
        driver_of(volume.source_at).require(volume.source_path, error=NeedsOperator)
    turned = view.notes[Phase.HAND_OVER, Side.TARGET].get("turned_round")
    turn = Turn(*turned) if turned else None
    # Before swtpm ends, which some take for a reason to write.
    copy = _copy_tpm(work) if turn else None
    if view.shares_tpm:
        # It is the target's state: nothing more may be written here, as some do when they see their QEMU go.
        stop_swtpm(place, patience_s=0.0)
    machine.stop_now(place)
    stop_swtpm(place)
    stop_carrier(place)
    kept = left_behind(view) if turn and _is_proved(view, copy) else []
    if turn and kept:
        noted = view.notes[Phase.HAND_OVER, Side.TARGET]
        adopt_source(work.context, view, turn, tpm=copy, at=noted["paused_at"], looks=noted["looks"])
    if view.tpm and not view.tpm.stays:
        await asyncio.to_thread(_put_tpm_away, work, view.tpm)
    await _free_volumes(work, kept)
    if copy is not None and not kept:
        destroy_image(copy.path)
        drop_reserved(work.context, copy)
    place.clear()
    return {}


def _copy_tpm(work: StepRun) -> TpmCopy | None:
    """The state itself goes into quarantine; of the replica it is a copy, whose row comes first."""
    view, tpm = work.view, work.view.tpm
    if tpm is None or tpm not in left_behind(view):
        return None
    name = made_by(tpm.source_path.name, view.migration_id)
    copy = TpmCopy(view.vm_id, view.source.id, tpm.source_path.with_name(name))
    reserve_copy(work.context, copy, epoch=view.epoch)
    if tpm.source_path.exists() and not (copy.path.exists() and _is_proved(view, copy)):
        copy_state(tpm.source_path, copy.path)
    return copy


def _is_proved(view: AttemptView, copy: TpmCopy | None) -> bool:
    """Whether the copy is the state that the hand-over has proved, so that it is of one moment with the disks."""
    if copy is None or view.tpm_identity is None:
        return True
    return copy.path.exists() and read_state(copy.path).digest == require_tpm_transfer(view).digest_source


async def _free_volumes(work: StepRun, kept: Sequence[TransferView]) -> None:
    view = work.view
    freeing = Freeing(work.context, view.source.id, attempt_id=view.attempt_id)
    for volume in view.by_method(TransferMethod.MIRROR, TransferMethod.DELTA, TransferMethod.COPY):
        if volume not in kept:
            await asyncio.to_thread(freeing.free, volume.source_path)


def _put_tpm_away(work: StepRun, tpm: TransferView) -> None:
    """The state that is the VM's no more waits for its end; one in which no TPM was ever made need not."""
    view = work.view
    driver = driver_of(tpm.source_at)
    if view.tpm_identity is None:
        driver.destroy(tpm.source_path)
        return
    away = work.node.layout.quarantine / f"{view.vm}-e{view.epoch}-{tpm.source_path.name}"
    # The row names the new place first: whoever looks in between finds the file in one of the two.
    quarantine_path(work.context, TpmCopy(view.vm_id, view.source.id, tpm.source_path), away)
    if not driver.exists(tpm.source_path):
        return
    if tpm.source_at.facts.has_files:
        tpm.source_path.rename(away)
        return
    # A device stays where it is: its state goes. Whole or not at all: what is being overwritten is not copied again.
    if not away.exists():
        half = away.with_suffix(".half")
        copy_state(tpm.source_path, half, length=tpm.size_bytes)
        half.rename(away)
        flush_folder(away.parent)
    driver.destroy(tpm.source_path)


@app.task(name=f"haulier.{Phase.RETIRE_SOURCE}")
def retire_source(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run)
