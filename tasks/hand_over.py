"""Phase 8, hand_over (target): waits for the load, proves that nothing was lost, takes the guest, lets it run.

It runs beside move_memory. Inside the pause there is no hop over the queue: the two sides meet in the rows, and a nudge
over Redis says when to look. A VM that does not run is taken when its volumes have been copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from haulier.errors import NeedsOperator, StepFailed
from haulier.fault_points import fault_point
from haulier.hypervisor import machine, stream
from haulier.hypervisor.disks import stop_serving
from haulier.hypervisor.monitor import Event, Monitor, MonitorLost, open_monitor
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.processes import wait_for_end
from haulier.hypervisor.sockets import listen_on
from haulier.hypervisor.tpm_identity import read_identity
from haulier.hypervisor.tpm_state import read_state
from haulier.services.allocations import free_allocations
from haulier.services.attempts import SourceNote, migration_state, source_note, tpm_was_let_go
from haulier.services.chain import stand_by
from haulier.services.ownership import (
    HandOver,
    NewHome,
    record_proof,
    record_settled,
    taken_topic,
)
from haulier.services.replicas import turn_round
from haulier.signals import AsyncBell
from models import MigrationState, Phase, Side, TransferMethod, VmState
from tasks.celery import app
from tasks.deltas import merge_deltas, record_later_writes
from tasks.deltas_at_rest import record_from_now_on
from tasks.old_replicas import remove_old_replicas
from tasks.open_target import on_some_port, prove_copy, stop_target
from tasks.receiving import write_all
from tasks.runner import Notes, StepRun, execute, patiently
from tasks.volume_files import looks_of


async def run(work: StepRun) -> Notes:
    """Take the guest over and let it run. Raises StepFailed when the load or the proof fails: it stays the source's.

    Tried again after the hand-over was committed, it goes on with letting the guest run. A QEMU that dies after the
    commit is the guest's death and no migration's: the VM is `lost` here, with its newest disks and TPM.
    """
    view, lost = work.view, False
    if view.offline:
        return await _take_over_at_rest(work)
    async with work.context.signals.listen_async(f"attempt.{view.attempt_id}") as bell:
        try:
            async with open_monitor(work.place.control) as monitor:
                if not view.handed_over:
                    sent = await _take_over(work, monitor, bell)
                    await _wait_for_tpm(work, bell)
                    await _let_run(work, monitor, sent)
                elif not view.settled:
                    await _wait_for_tpm(work, bell)
                    await _let_run_again(work, monitor)
                await stream.drop_key(monitor)
        except (StepFailed, MonitorLost, asyncio.CancelledError) as error:
            if work.place.qemu.pid() is not None and not wait_for_end(work.place.qemu, seconds=0.2):
                raise
            if not (view.handed_over or "committed" in work.marks):
                raise _in_its_own_words(work, error) from error
            lost = True
            stop_target(work)
            record_settled(work.context, view, state=VmState.LOST)
    await merge_deltas(work)
    await asyncio.to_thread(_afterwards, work)
    if lost:
        work.place.clear()
    return _turned_round(work)


async def _take_over_at_rest(work: StepRun) -> Notes:
    """The VM does not run: its volumes have arrived, and nobody waits."""
    view = work.view
    if not view.handed_over:
        if view.crossing:
            await asyncio.to_thread(write_all, work)
        free_allocations(work.context, view.attempt_id, purpose="carrier")
        arrived = prove_copy(work)
        await fault_point("hand_over.proved")
        if not HandOver(work.context, work.claim, view, NewHome()).commit(arrived):
            raise StepFailed("given_up", "the migration is being undone", "See the other steps.")
        await fault_point("hand_over.committed")
    if not view.settled:
        record_settled(work.context, view, state=None)
    await merge_deltas(work)
    await record_from_now_on(work)
    _clear(work)
    work.place.clear()
    return _turned_round(work)


def _turned_round(work: StepRun) -> Notes:
    """For the source: what it has left is the VM's replica from now on, of the moment of the pause."""
    turn, sent = work.view.turn, source_note(work.context, work.view.attempt_id) if not work.view.offline else None
    if turn is None:
        return {}
    at = sent.paused_at if sent else None
    files = [each for each in work.view.by_method(TransferMethod.COPY) if each.target_at.facts.has_files]
    # Somebody may have removed an unused one meanwhile, which must not keep the VM from its end.
    looks = {each.device: looks_of(each.target_path) for each in files if each.target_path.exists()}
    return {"turned_round": [turn.replication_id, turn.generation], "paused_at": at or time.time(), "looks": looks}


def _in_its_own_words(work: StepRun, error: BaseException) -> StepFailed:
    """A QEMU that has died says in its log why."""
    log_from = work.view.notes[Phase.OPEN_TARGET, Side.TARGET].get("log_from", 0)
    words = machine.said_last(work.place, since=log_from) or str(error)
    return StepFailed("target_failed", f"the target's QEMU ended: {words}", "QEMU's own words; the source runs on.")


async def _take_over(work: StepRun, monitor: Monitor, bell: AsyncBell) -> SourceNote:
    """The target's half of the pause: loaded, proved, committed. Returns what the source noted."""
    home = NewHome(pid=work.place.qemu.pid() or 0, qmp=str(work.place.qmp))
    change = HandOver(work.context, work.claim, work.view, home)
    change.rehearse()
    with await _listen(work) as listener:
        if not stand_by(work.context, work.claim):
            raise StepFailed("given_up", "the migration is being undone", "See the other steps.")
        await stream.receive(monitor, listener, key=work.greeting_key())
    await _wait_for_load(work, monitor)
    # QEMU closes the exports, which flushes the disks, while the source writes its note.
    _, arrived, sent = await asyncio.gather(_close_exports(work, monitor), _digest(work), _wait_for_source(work, bell))
    if arrived != sent.digest:
        raise StepFailed(
            "tpm_proof_failed",
            f"the TPM state that arrived ({str(arrived)[:12]}…) is not the source's ({str(sent.digest)[:12]}…)",
            "The source keeps the guest; nothing was lost. Look at both logs of swtpm.",
        )
    work.mark("proved")
    await fault_point("hand_over.proved")
    # The source's note may have been long in coming, and the source can still let the guest run.
    for name, daemon in (("QEMU", work.place.qemu), *([("swtpm", work.place.swtpm)] if work.view.tpm else [])):
        if daemon.pid() is None:
            raise StepFailed("target_failed", f"the target's {name} ended", "The source keeps the guest.")
    if not await _commit(work, change, arrived):
        raise StepFailed("given_up", "the source keeps the guest", "See the other steps.")
    work.mark("committed")
    await fault_point("hand_over.committed")
    return sent


async def _commit(work: StepRun, change: HandOver, arrived: str | None) -> bool:
    """Take the guest, by a database that may be away for a moment: as long as the lease lasts. Says whether it is ours.

    What became of a try that failed is unknown, so the next one asks: nobody but us can have handed it over.
    """

    def take() -> bool:
        if change.commit(arrived):
            return True
        state = migration_state(work.context, work.view.migration_id)
        return "commit_tried" in work.marks and state is MigrationState.HANDED_OVER

    return await patiently(work, take, tried="commit_tried")


async def _listen(work: StepRun) -> socket.socket:
    """Listen for the stream. The source learns the port from our notes, and comes when we stand by."""
    made: list[socket.socket] = []

    async def opening(server: NbdServer) -> None:
        made.append(listen_on(server))

    server = await on_some_port(work, "stream", opening)
    work.note(stream_port=server.port)
    return made[0]


async def _close_exports(work: StepRun, monitor: Monitor) -> None:
    if work.view.mirrored:
        await stop_serving(monitor)
        work.mark("exports_closed")
        await record_later_writes(work, monitor)


async def _digest(work: StepRun) -> str | None:
    """The TPM's state as it arrived."""
    return read_state(work.view.tpm.target_path).digest if work.view.tpm else None


async def _wait_for_load(work: StepRun, monitor: Monitor) -> None:
    """Wait until QEMU has loaded the whole guest."""
    if (await stream.read_stream(monitor)).status != "completed":
        await stream.wait_for_status(monitor, "completed")
    work.mark("loaded")
    await fault_point("hand_over.loaded")


async def _wait_for_source(work: StepRun, bell: AsyncBell) -> SourceNote:
    """Wait for the source's note: its QEMU knows that we have loaded, and this is the TPM's last digest."""
    while True:
        # A database that is away for a moment ends nothing as long as the lease lasts.
        with contextlib.suppress(SQLAlchemyError), work.context.database.at_once():
            note = source_note(work.context, work.view.attempt_id)
            if note is not None:
                work.mark("source_noted")
                return note
        await bell.wait(0.05)


async def _wait_for_tpm(work: StepRun, bell: AsyncBell) -> None:
    """The guest is ours; a TPM's state that both nodes see must have no other swtpm before the guest changes it.

    A source that is silent is not waited for: its guest stands still, so that its swtpm has nothing to write.
    """
    if not work.view.shares_tpm:
        return
    work.context.signals.ring(taken_topic(work.view.attempt_id))
    let_go = partial(tpm_was_let_go, work.context, work.view, work.claim.partners)
    while not await patiently(work, let_go, tried="let_go_asked"):
        await bell.wait(0.05)
    work.mark("tpm_let_go")


async def _let_run_again(work: StepRun, monitor: Monitor) -> None:
    """What an earlier try of this step committed and may not have come round to."""
    sent = source_note(work.context, work.view.attempt_id)
    if sent is None:
        raise NeedsOperator("source_note_lost", "handed over without the source's note", "This is a defect.")
    if sent.was_running and await machine.status(monitor) == "running":
        record_settled(work.context, work.view, state=VmState.RUNNING)
        return
    await record_later_writes(work, monitor)
    await _let_run(work, monitor, sent)


async def _let_run(work: StepRun, monitor: Monitor, sent: SourceNote) -> None:
    """The guest is ours: from here on no failure gives it back. One that was paused before stays paused."""
    # For the day on which somebody asks what runs here; a full disk must not keep the guest waiting.
    with contextlib.suppress(OSError):
        work.place.note_epoch(work.view.epoch + 1)
    downtime_ms: float | None = None
    if sent.was_running:
        try:
            await machine.resume_paused(monitor)
            resumed = (await monitor.wait_for(_is_resume)).at
        except (StepFailed, MonitorLost) as error:
            if wait_for_end(work.place.qemu, seconds=0.2):
                raise
            words = f"the guest is here but does not run: {error.problem.message}"
            raise NeedsOperator("resume_failed", words, "Look at its QEMU; then haulier migration retry.") from error
        work.marks["resumed"] = resumed
        downtime_ms = (resumed - sent.paused_at) * 1000 if sent.paused_at else None
    state = VmState.RUNNING if sent.was_running else VmState.PAUSED
    record_settled(work.context, work.view, state=state, downtime_ms=downtime_ms)


def _is_resume(event: Event) -> bool:
    return event.name == "RESUME"


def _afterwards(work: StepRun) -> None:
    """With the guest running: keep the proof, and clear up."""
    view, sent = work.view, source_note(work.context, work.view.attempt_id)
    if view.tpm and sent:
        arrived = read_state(view.tpm.target_path)
        record_proof(
            work.context,
            view.tpm.id,
            digest=str(sent.digest),
            identity_source=view.notes[Phase.SYNC_TPM, Side.SOURCE]["identity"],
            identity_target=read_identity(arrived.container, swtpm=work.context.settings.swtpm, scratch=work.place.run),
        )
    _clear(work)


def _clear(work: StepRun) -> None:
    """What the VM does not need where it lives now: old replicas, the key."""
    turn_round(work.context, work.view)
    remove_old_replicas(work)
    if keys := work.keys():
        keys.remove()


async def undo(work: StepRun) -> None:
    """Only before the commit: nothing of the guest may run here when the source resumes."""
    stop_target(work)


@app.task(name=f"haulier.{Phase.HAND_OVER}")
def hand_over(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
