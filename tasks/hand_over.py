"""Phase 8, hand_over (target): waits for the load, proves that nothing was lost, takes the guest, lets it run.

It runs beside move_memory. Inside the pause there is no hop over the queue: the two sides meet in the rows, and a nudge
over Redis says when to look.
"""

from __future__ import annotations

from typing import Any

from haulier.errors import NeedsOperator, StepFailed
from haulier.hypervisor import machine, stream
from haulier.hypervisor.disks import stop_serving
from haulier.hypervisor.images import remove_image
from haulier.hypervisor.monitor import Event, Monitor, MonitorLost, open_monitor
from haulier.hypervisor.processes import wait_for_end
from haulier.hypervisor.tpm_identity import read_identity
from haulier.hypervisor.tpm_state import TpmState, read_state
from haulier.services.attempts import free_allocations, step_state
from haulier.services.ownership import (
    NewHome,
    commit_hand_over,
    old_replicas,
    record_running,
    record_transfer_digests,
)
from haulier.signals import AsyncBell
from models import AllocationKind, Phase, Side, StepState, TransferMethod
from tasks.celery import app
from tasks.open_target import stop_target
from tasks.runner import Notes, StepRun, execute


async def run(work: StepRun) -> Notes:
    """Take the guest over. Raises StepFailed when the load or the proof fails; the guest is then the source's."""
    view, place = work.view, work.place
    async with (
        work.context.signals.listen_async(f"migration.{view.migration_id}") as bell,
        open_monitor(place.control) as monitor,
    ):
        await _wait_for_load(work, monitor)
        arrived = read_state(view.tpm.target_path) if view.tpm else None
        if view.by_method(TransferMethod.MIRROR):
            await stop_serving(monitor)
        sent = await _wait_for_source(work, bell)
        _prove(work, arrived, sent["digest"])
        work.mark("proved")
        home = NewHome(pid=place.qemu.pid() or 0, qmp=str(place.qmp), digest=arrived.digest if arrived else None)
        if not commit_hand_over(work.context, work.claim, view, home):
            raise StepFailed("not_ours", "the source keeps the guest", "See the other steps.")
        work.mark("committed")
        await _let_run(work, monitor, sent)
        await stream.drop_key(monitor)
    _afterwards(work, arrived, sent)
    return {}


async def _wait_for_load(work: StepRun, monitor: Monitor) -> None:
    """Wait until QEMU has loaded the whole guest. A QEMU that dies on the way has said why in its log."""
    try:
        status = (await stream.read_stream(monitor)).status
        if status != "completed":
            await stream.wait_for_status(monitor, "completed")
    except (StepFailed, MonitorLost) as error:
        wait_for_end(work.place.qemu, seconds=2.0)
        log_from = work.view.notes[Phase.OPEN_TARGET, Side.TARGET].get("log_from", 0)
        words = machine.said_last(work.place, since=log_from) or error.problem.message
        raise StepFailed(
            "target_failed", f"the target could not load the guest: {words}", "QEMU's own words; the source runs on."
        ) from error
    work.mark("loaded")


async def _wait_for_source(work: StepRun, bell: AsyncBell) -> dict[str, Any]:
    """Wait for the end of move_memory: the source's QEMU knows that we have loaded, and has noted the TPM's last
    digest.
    """
    while True:
        state, notes, marks = step_state(work.context, work.view.attempt_id, Phase.MOVE_MEMORY)
        if state is StepState.DONE:
            work.source_marks = marks
            return notes
        await bell.wait(0.05)


def _prove(work: StepRun, arrived: TpmState | None, sent_digest: str | None) -> None:
    """Nothing that the guest wrote into its TPM before the pause may be missing here."""
    if arrived is not None and arrived.digest != sent_digest:
        raise StepFailed(
            "tpm_proof_failed",
            f"the TPM state that arrived ({arrived.digest[:12]}…) is not the source's ({str(sent_digest)[:12]}…)",
            "The source keeps the guest; nothing was lost. Look at both logs of swtpm.",
        )


async def _let_run(work: StepRun, monitor: Monitor, sent: dict[str, Any]) -> None:
    """The guest is ours: from here on no failure gives it back."""
    resumed: float | None = None
    if sent["was_running"]:
        try:
            await machine.resume(monitor)
            resumed = (await monitor.wait_for(_is_resume)).at
        except (StepFailed, MonitorLost) as error:
            raise NeedsOperator(
                "resume_failed", f"the guest is here but does not run: {error.problem.message}", "haulier vm show"
            ) from error
        work.marks["resumed"] = resumed
    paused = work.source_marks.get("paused")
    downtime_ms = (resumed - paused) * 1000 if resumed and paused else None
    record_running(
        work.context,
        work.view,
        running=sent["was_running"],
        downtime_ms=downtime_ms,
        ram_bytes=sent["ram_bytes"],
    )


def _is_resume(event: Event) -> bool:
    return event.name == "RESUME"


def _afterwards(work: StepRun, arrived: TpmState | None, sent: dict[str, Any]) -> None:
    """With the guest running: keep the proof, and drop replicas that lie where the VM now lives."""
    view = work.view
    if arrived is not None and view.tpm is not None:
        identity = read_identity(arrived.container, swtpm=work.context.settings.swtpm, scratch=work.place.run)
        record_transfer_digests(
            work.context,
            view.tpm.id,
            source=sent["digest"],
            target=arrived.digest,
            identity_source=view.notes[Phase.SYNC_TPM, Side.SOURCE]["identity"],
            identity_target=identity,
        )
    for path in old_replicas(work.context, view):
        remove_image(path)
        free_allocations(work.context, view.attempt_id, kind=AllocationKind.VOLUME, path=path)
    if keys := work.keys():
        keys.remove()


async def undo(work: StepRun) -> None:
    """Only before the commit: nothing of the guest may run here when the source resumes."""
    stop_target(work)


@app.task(name=f"haulier.{Phase.HAND_OVER}")
def hand_over(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
