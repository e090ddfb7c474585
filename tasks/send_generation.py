"""send_generation (source), of a sync: the moment is taken, of all disks in one transaction, and what they held then is
sent; so is the TPM's state of that moment.

The guest is not paused. The TPM's state is read before and after the transaction: as long as it does not change in
between, it is the one of the moment. If it did, the moment is taken again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence

from haulier.errors import StepFailed
from haulier.fault_points import fault_point
from haulier.hypervisor.disks import drop_jobs, end_jobs, wait_until_done
from haulier.hypervisor.generations import (
    DiskBackup,
    begin_generation,
    bitmap_name,
    connect_backups,
    drop_bitmaps,
    drop_bitmaps_of_others,
)
from haulier.hypervisor.monitor import Monitor, open_monitor
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.reader import ReadDisk, open_reader, stop_reader
from haulier.hypervisor.storage import driver_of
from haulier.hypervisor.stream import drop_key, ensure_key
from haulier.hypervisor.tpm_state import TpmState, read_state
from haulier.services.attempts import AttemptView, TransferView, require_sync, update_transfer
from models import Phase, Side, TransferMethod
from tasks.backups import backups_to_carrier
from tasks.celery import app
from tasks.comparing import mark_what_differs
from tasks.copy_cold import copy_volumes
from tasks.jobs import watch_jobs
from tasks.runner import Notes, StepRun, execute, reporting
from tasks.sync_tpm import forget_copies, recognise, send_state

_TRIES = 20


async def run(work: StepRun) -> Notes:
    """Send a generation. Raises StepFailed with the words of the program that failed; the bitmap of the last generation
    goes on then, and says all that the next sync must send.
    """
    view = work.view
    for volume in view.crossing:
        driver_of(volume.source_at).require(volume.source_path)
    async with _disks(work) as monitor:
        backups = await _backups(view, monitor)
        server = NbdServer(view.target.address, view.notes[Phase.RESERVE, Side.TARGET].get("carrier_port", 0))
        await connect_backups(monitor, backups, server=server, tls=work.tls)
        jobs, at, state = await _take_moment(work, monitor, backups)
        await fault_point("send_generation.begun")
        begun = time.monotonic()
        async with reporting(lambda: watch_jobs(work, monitor)):
            sent = await wait_until_done(monitor, jobs)
    for volume in view.by_method(TransferMethod.DELTA):
        update_transfer(work.context, volume.id, bytes=sent[volume.device], seconds=time.monotonic() - begun)
    identity = await _send_tpm(work, view.tpm, state) if view.tpm and state else None
    await copy_volumes(work)
    forget_copies(work)
    return {"at": at, "digest": state and state.digest, "identity": identity}


@contextlib.asynccontextmanager
async def _disks(work: StepRun) -> AsyncIterator[Monitor]:
    """Whoever has the disks open: the VM's QEMU, or a reader if it does not run. Nothing of ours is left there when it
    went well, but the bitmaps.
    """
    view, disks = work.view, work.view.by_method(TransferMethod.DELTA)
    if view.offline:
        read = [ReadDisk(disk.device, disk.source_image) for disk in disks]
        async with open_reader(work.place, read, keys=work.keys()) as monitor:
            await mark_what_differs(work, monitor)
            yield monitor
        return
    async with open_monitor(work.place.control) as monitor:
        if keys := work.keys():
            await ensure_key(monitor, keys, server=False)
        yield monitor
        # All has been acknowledged. To close them in order would have QEMU wait, with its guest, until the target has
        # written it to its disk; there it is waited for.
        await drop_jobs(monitor)
        await drop_key(monitor)


async def _backups(view: AttemptView, monitor: Monitor) -> list[DiskBackup]:
    """What is to be sent of each disk: since its replica's generation, if there is a bitmap that says what that is."""
    disks = view.by_method(TransferMethod.DELTA)
    devices = [disk.device for disk in disks]
    # Left by replications that have ended, by a sync that was committed, or that nobody could undo.
    live = view.notes[Phase.CHECK, Side.CONTROL]["live_replications"]
    await drop_bitmaps_of_others(monitor, devices, live=live)
    await drop_bitmaps(monitor, devices, of=require_sync(view), keep={_last_bitmap(view)})
    return await backups_to_carrier(monitor, disks)


def _last_bitmap(view: AttemptView) -> str:
    return bitmap_name(require_sync(view), view.generation - 1)


async def _take_moment(
    work: StepRun, monitor: Monitor, backups: Sequence[DiskBackup]
) -> tuple[list[str], float, TpmState | None]:
    """Begin to send. Returns the jobs, the moment in seconds since 1970, and the TPM's state of that moment."""
    view, at_most = work.view, await work.allowance.pace(jobs=len(backups))
    bitmap = bitmap_name(require_sync(view), view.generation)
    for number in range(_TRIES):
        before = read_state(view.tpm.source_path) if view.tpm else None
        jobs = await begin_generation(monitor, backups, bitmap=bitmap, number=number, max_bytes_per_s=at_most)
        at = time.time()
        after = read_state(view.tpm.source_path) if view.tpm else None
        if before == after:
            return jobs, at, after
        await end_jobs(monitor)
        await drop_bitmaps(monitor, [each.device for each in backups], of=require_sync(view), keep={_last_bitmap(view)})
    raise StepFailed("tpm_state_unstable", f"the TPM of {view.vm} changes all the time", "Is the guest in a TPM loop?")


async def _send_tpm(work: StepRun, tpm: TransferView, state: TpmState) -> str | None:
    begun, identity = time.monotonic(), recognise(work, state)
    await send_state(work, tpm, state)
    length = len(state.container)
    found = {"digest_source": identity and state.digest, "identity_source": identity}
    update_transfer(work.context, tpm.id, bytes=length, bytes_total=length, seconds=time.monotonic() - begun, **found)
    return identity


async def undo(work: StepRun) -> None:
    """End what is being sent and forget the moment; the last generation's bitmap stays."""
    view = work.view
    stop_reader(work.place)
    work.place.forget_digests()
    if work.place.qemu.pid() is not None:
        devices = [disk.device for disk in view.by_method(TransferMethod.DELTA)]
        async with open_monitor(work.place.control) as monitor:
            await drop_jobs(monitor)
            await drop_bitmaps(monitor, devices, of=require_sync(view), keep={_last_bitmap(view)})
            await drop_key(monitor)
    forget_copies(work)


@app.task(name=f"haulier.{Phase.SEND_GENERATION}")
def send_generation(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
