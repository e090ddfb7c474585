"""Phase 2, reserve (target): a row for everything before it is made, then the volumes, and a carrier that receives the
cold ones.

The carrier is a storage daemon that exports the TPM's volume and the volumes QEMU does not write, as long as nobody has
them open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from haulier.errors import StepFailed
from haulier.hypervisor.carrier import CarrierExport, start_carrier, stop_carrier
from haulier.hypervisor.images import create_overlay, link_image
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.storage import driver_of
from haulier.services.allocations import (
    allocated_volumes,
    free_allocations,
    take_memory,
    take_volume,
)
from haulier.services.attempts import TransferView
from haulier.services.ledger import TpmCopy, drop_reserved, reserve_copy
from models import AllocationKind, Phase, TransferMethod, VolumeRole
from tasks.celery import app
from tasks.comparing import read_replicas
from tasks.freeing import Freeing
from tasks.merging import merge_replica
from tasks.runner import Notes, StepRun, execute

Made = TypeVar("Made")
CARRIED = (TransferMethod.TPM_SYNC, TransferMethod.COPY)


async def run(work: StepRun) -> Notes:
    """Make room on the target. Raises StepFailed when a volume cannot be made; `undo` frees what was."""
    view = work.view
    if view.replication_id:
        # Left by a sync that was given up after its commit, because this node was lost for a while.
        await merge_replica(work.context, view.replication_id)
    if not (view.offline or view.replication_id):
        take_memory(work.context, view.attempt_id, view.target, view.pinned["ram_kib"] * 1024)
    linked = [] if view.replication_id else [each for each in view.copied if _link(work, each)]
    made = [volume for volume in view.crossing if volume not in linked]
    for volume in made:
        # In a thread, one after the other: LVM takes its time, and the lease goes on.
        await asyncio.to_thread(_make, work, volume)
    notes = {"linked": [volume.device for volume in linked]}
    # Nobody else has the disks of a VM that does not run, or of a replica.
    at_rest = view.offline or view.replication_id is not None
    carried = tuple(volume for volume in made if volume.method in CARRIED or at_rest)
    if not carried:
        return notes
    digests, noted = await read_replicas(work)
    return {"carrier_port": _open_carrier(work, carried, beside=digests).port, **notes, **noted}


def _link(work: StepRun, volume: TransferView) -> bool:
    """Make a volume of its replica's file, which holds what it holds: by a second name, so that an undo leaves the
    replica. False if that cannot be.
    """
    replica = volume.replica
    if replica is None or volume.device not in work.view.unchanged:
        return False
    return _create(work, volume, volume.target_path, partial(link_image, other=replica.path))


def _make(work: StepRun, volume: TransferView) -> None:
    view, make = work.view, driver_of(volume.target_at).make
    if volume.role is VolumeRole.TPMSTATE:
        # A volume's row goes before the ledger's too, which is given back with it.
        _take(work, volume, volume.target_path)
        epoch = view.epoch if view.replication_id else view.epoch + 1
        reserve_copy(work.context, TpmCopy(view.vm_id, view.target.id, volume.target_path), epoch=epoch)
    if volume.base_path is not None:
        base, form = volume.base_path, volume.target_format
        if volume.replica is None:
            _create(work, volume, base, partial(make, format=form, size_bytes=volume.size_bytes))
        _create(work, volume, volume.target_path, partial(create_overlay, base=base, base_format=form))
    elif volume.method is TransferMethod.COPY:
        _create(work, volume, volume.target_path, partial(make, format="raw", size_bytes=view.file_bytes(volume)))
    else:
        making = partial(make, format=volume.target_format, size_bytes=volume.size_bytes)
        _create(work, volume, volume.target_path, making)


def _create(work: StepRun, volume: TransferView, path: Path, making: Callable[[Path], Made]) -> Made:
    _take(work, volume, path)
    try:
        return making(path)
    except StepFailed:
        # Nothing was made. What is there came between `check` and now, and is somebody else's: an undo, which frees
        # what has a row, leaves it.
        _forget(work, path)
        raise


def _take(work: StepRun, volume: TransferView, path: Path) -> None:
    """The row goes first: if we end right here, an undo finds a row without a file, never a file without a row."""
    driver_of(volume.target_at).require(path)
    take_volume(work.context, work.view.attempt_id, work.view.target, path)


def _open_carrier(work: StepRun, carried: tuple[TransferView, ...], *, beside: Sequence[CarrierExport]) -> NbdServer:
    """Receive these volumes; `beside` them the source reads something."""
    exports = [*(CarrierExport(volume.export, volume.received) for volume in carried), *beside]
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
    freeing = Freeing(work.context, view.target.id, attempt_id=view.attempt_id)
    for path in allocated_volumes(work.context, view.attempt_id, view.target):
        is_secret = view.tpm is not None and path == view.tpm.target_path
        await asyncio.to_thread(freeing.free, path, is_secret=is_secret)
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
