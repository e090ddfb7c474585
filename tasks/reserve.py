"""Phase 2, reserve (target): a row for everything before it is made, then the volumes, and a carrier that receives the
cold ones.

The carrier is a storage daemon that exports the TPM's volume and the volumes QEMU does not write, as long as nobody has
them open.
"""

from __future__ import annotations

from pathlib import Path

from haulier.errors import NeedsOperator, StepFailed
from haulier.hypervisor.images import (
    VOLUME_EXISTS,
    CarrierExport,
    NbdServer,
    create_image,
    destroy_image,
    remove_image,
    start_carrier,
    stop_carrier,
)
from haulier.hypervisor.volume_paths import innermost, require_inside
from haulier.services.allocations import (
    allocated_volumes,
    free_allocations,
    paths_in_use,
    storage_folders,
    take_memory,
    take_volume,
)
from haulier.services.attempts import TransferView
from haulier.services.ledger import TpmCopy, drop_reserved, reserve_copy
from models import AllocationKind, Phase, TransferMethod, VolumeRole
from tasks.celery import app
from tasks.runner import Notes, StepRun, execute

CARRIED = (TransferMethod.TPM_SYNC, TransferMethod.COPY)


async def run(work: StepRun) -> Notes:
    """Make room on the target. Raises StepFailed when a volume cannot be made; `undo` frees what was."""
    view = work.view
    if not view.offline:
        take_memory(work.context, view.attempt_id, view.target, view.pinned["ram_kib"] * 1024)
    for volume in view.crossing:
        _make(work, volume)
    carried = tuple(volume for volume in view.crossing if volume.method in CARRIED)
    if not carried:
        return {}
    return {"carrier_port": _open_carrier(work, carried).port}


def _make(work: StepRun, volume: TransferView) -> None:
    view = work.view
    require_inside(volume.target_path, volume.target_folder)
    # The row goes first: if we end right here, an undo finds a row without a file, never a file without a row. It goes
    # before the ledger's too, which is given back with it.
    take_volume(work.context, view.attempt_id, view.target, volume.target_path)
    if volume.role is VolumeRole.TPMSTATE:
        reserve_copy(work.context, TpmCopy(view.vm_id, view.target.id, volume.target_path), epoch=view.epoch + 1)
    try:
        if volume.method is TransferMethod.COPY:
            create_image(volume.target_path, format="raw", size_bytes=view.file_bytes(volume))
        else:
            create_image(volume.target_path, format=volume.format, size_bytes=volume.size_bytes)
    except StepFailed as error:
        if error.code == VOLUME_EXISTS:
            # It came between `check` and now and is somebody else's: an undo, which frees what has a row, leaves it.
            _forget(work, volume.target_path)
        raise


def _open_carrier(work: StepRun, carried: tuple[TransferView, ...]) -> NbdServer:
    exports = [CarrierExport(volume.export, volume.target_path) for volume in carried]
    tried: frozenset[int] = frozenset()
    while True:
        server = work.listen_on(work.view.target, "carrier", avoid=tried)
        try:
            start_carrier(work.place, exports, server=server, keys=work.keys())
        except StepFailed as error:
            free_allocations(work.context, work.view.attempt_id, purpose="carrier")
            if "Address already in use" not in error.problem.message:
                raise
            tried |= {server.port}
        else:
            return server


async def undo(work: StepRun) -> None:
    """Free all that has a row: the carrier, the volumes, the ledger's reservation, ports and RAM."""
    view = work.view
    stop_carrier(work.place)
    folders, in_use = storage_folders(work.context, view.target.id), paths_in_use(work.context, view.target.id)
    for path in allocated_volumes(work.context, view.attempt_id, view.target):
        require_inside(path, innermost(path, folders), error=NeedsOperator)
        # The rows have the last word: whatever an error somewhere else makes of the paths, a VM's volume stays.
        if path in in_use:
            raise NeedsOperator("volume_in_use", f"{path} is a VM's volume", "Nothing more was freed.")
        if view.tpm and path == view.tpm.target_path:
            destroy_image(path)
        else:
            remove_image(path)
        _forget(work, path)
    free_allocations(work.context, view.attempt_id)
    work.place.clear()


def _forget(work: StepRun, path: Path) -> None:
    """No file of this attempt is there, or not any more."""
    view = work.view
    if view.tpm and path == view.tpm.target_path:
        drop_reserved(work.context, TpmCopy(view.vm_id, view.target.id, path))
    free_allocations(work.context, view.attempt_id, kind=AllocationKind.VOLUME, path=path)


@app.task(name=f"haulier.{Phase.RESERVE}")
def reserve(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
