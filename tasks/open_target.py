"""Phase 5, open_target (target): the carrier closes, then swtpm and QEMU start and wait, and the disks are served.

Before swtpm opens the volume, the copy is read back and a scratch swtpm is asked who it is: a state that this node
cannot read is noticed here, with the guest still running on the source.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from haulier.errors import StepFailed
from haulier.hypervisor import machine
from haulier.hypervisor.carrier import stop_carrier
from haulier.hypervisor.disks import serve_disks
from haulier.hypervisor.monitor import Monitor, open_monitor
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.processes import log_size
from haulier.hypervisor.sockets import PORT_TAKEN
from haulier.hypervisor.storage import driver_of
from haulier.hypervisor.stream import ensure_key
from haulier.hypervisor.swtpm import stop_swtpm
from haulier.hypervisor.tpm_identity import read_identity
from haulier.hypervisor.tpm_state import read_state
from haulier.services.allocations import free_allocations
from haulier.services.attempts import TransferView, update_transfer
from models import Phase, Side, TransferMethod
from tasks.celery import app
from tasks.guest import DiskFiles, launch_guest, machine_spec
from tasks.runner import Notes, StepRun, execute
from tasks.surroundings import this_swtpm


async def run(work: StepRun) -> Notes:
    """Start what will be the guest. Raises StepFailed with the words of the program that failed."""
    view, place = work.view, work.place
    for volume in view.transfers:
        driver = driver_of(volume.target_at)
        driver.require(volume.target_path)
        driver.require(volume.final_path)
    stop_carrier(place)
    free_allocations(work.context, view.attempt_id, purpose="carrier")
    log_from = log_size(place.qemu.log)
    if view.tpm:
        prove_copy(work)
    spec = machine_spec(
        view.definition,
        view.pinned,
        place=place,
        files={volume.device: _files(volume) for volume in view.transfers},
        settings=work.context.settings,
        incoming=True,
    )
    tpm = view.tpm.target_path if view.tpm else None
    pid = await launch_guest(place, spec, tpm=tpm, swtpm=this_swtpm() if tpm else None)
    async with open_monitor(place.control) as monitor:
        if keys := work.keys():
            await ensure_key(monitor, keys, server=True)
        served = await _serve(work, monitor)
    return {"pid": pid, "nbd_port": served and served.port, "log_from": log_from}


def _files(volume: TransferView) -> DiskFiles:
    return DiskFiles(volume.target_image, volume.target_path if volume.base_path else None)


def prove_copy(work: StepRun, *, phase: Phase = Phase.SYNC_TPM) -> str | None:
    """Read the TPM's copy back, before any swtpm has it open, and compare it with what the source's `phase` noted.
    Returns its digest, None for a VM without a TPM.

    Raises StepFailed when it is not what was sent, or does not answer as the TPM that was sent.
    """
    view, tpm, sent = work.view, work.view.tpm, work.view.notes[phase, Side.SOURCE]
    if tpm is None:
        return None
    arrived = read_state(tpm.target_path)
    # One that both nodes see changes as long as the guest runs on the source.
    if arrived.digest != sent["digest"] and (view.offline or not tpm.stays):
        raise StepFailed("tpm_copy_differs", "the copy of the TPM state is not what was sent", "Try again.")
    identity = None
    if not arrived.is_blank:
        identity = read_identity(arrived.container, swtpm=work.context.settings.swtpm, scratch=work.place.run)
    if identity != sent["identity"]:
        raise StepFailed("tpm_identity_differs", "the TPM's copy answers as another TPM", "Keep the source; ask us.")
    digest = identity and arrived.digest
    update_transfer(work.context, tpm.id, digest_target=digest, identity_target=identity)
    return arrived.digest


async def _serve(work: StepRun, monitor: Monitor) -> NbdServer | None:
    view = work.view
    disks = [(volume.device, str(volume.role)) for volume in view.mirrored]
    overlays = [volume.device for volume in view.by_method(TransferMethod.DELTA)]
    if not disks:
        return None
    serve = partial(serve_disks, monitor, disks, tls=work.tls, overlays=overlays)
    return await on_some_port(work, "disks", lambda server: serve(server=server))


async def on_some_port(work: StepRun, purpose: str, opening: Callable[[NbdServer], Awaitable[None]]) -> NbdServer:
    """Open a server on a port of the range; one that a stranger has is left to the stranger."""
    tried: frozenset[int] = frozenset()
    while True:
        server = work.listen_on(work.view.target, purpose, avoid=tried)
        try:
            await opening(server)
        except StepFailed as error:
            free_allocations(work.context, work.view.attempt_id, purpose=purpose)
            if error.code != PORT_TAKEN and "Address already in use" not in error.problem.message:
                raise
            tried |= {server.port}
        else:
            return server


async def undo(work: StepRun) -> None:
    """Stop QEMU, then swtpm: the loser's TPM must be dead before the winner's guest runs."""
    stop_target(work)


def stop_target(work: StepRun) -> None:
    """Make sure that nothing of this VM runs on the target. Safe to call twice."""
    if work.view.shares_tpm:
        stop_swtpm(work.place, patience_s=0.0)  # before it sees its QEMU go, which some take for a reason to write
    # Killed without being asked: it has nothing to save, and the source's guest may stand still until it is dead.
    machine.stop_now(work.place, patience_s=0.0)
    stop_swtpm(work.place)


@app.task(name=f"haulier.{Phase.OPEN_TARGET}")
def open_target(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
