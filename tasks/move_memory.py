"""Phase 7, move_memory (source): RAM crosses while the guest runs; in the pause the mirrors are finished and the
devices sent.

It is done when the source's QEMU has seen the target load everything: such a QEMU does not resume by itself any more.
The end of this step, with the TPM's digest taken after the last command, is what the target waits for before it takes
the guest. A stream that fails before leaves the guest to the source, and the target without this step's end can never
take it.
"""

from __future__ import annotations

from haulier.errors import StepFailed
from haulier.hypervisor import machine, stream
from haulier.hypervisor.disks import finish_mirrors
from haulier.hypervisor.images import NbdServer
from haulier.hypervisor.monitor import Event, Monitor, open_monitor
from haulier.hypervisor.tpm_state import read_state
from haulier.planner.convergence import FIRST_PASS_LIMIT_MS, next_downtime_limit_ms, pace_bytes_per_s
from haulier.services.attempts import note_source_done
from models import Phase, Side
from tasks.celery import app
from tasks.mirror_disks import mirrors_of
from tasks.runner import Notes, StepRun, execute, reporting


async def run(work: StepRun) -> Notes:
    """Send the guest.

    Raises StepFailed with QEMU's words when the stream or a mirror fails; the guest stays the source's.
    """
    view, settings = work.view, work.context.settings
    if view.handed_over:
        # The note was written and the target has taken the guest; only this step's end was lost.
        return {}
    port = view.notes[Phase.OPEN_TARGET, Side.TARGET]["stream_port"]
    async with open_monitor(work.place.control) as monitor:
        if keys := work.keys():
            await stream.ensure_key(monitor, keys, server=False)
        was_running = await machine.status(monitor) == "running"
        await stream.send(
            monitor,
            server=NbdServer(view.target.address, port),
            tls=work.tls,
            max_bandwidth_bytes_per_s=settings.max_bandwidth_bytes_per_s,
            downtime_limit_ms=FIRST_PASS_LIMIT_MS,
        )
        async with reporting(lambda: _report(work, monitor)):
            await _wait_for_pause(work, monitor)
        await _switch_over(work, monitor)
        notes = {"digest": read_state(view.tpm.source_path).digest if view.tpm else None, "was_running": was_running}
        if not note_source_done(work.context, work.claim, notes, work.marks):
            raise StepFailed("given_up", "the migration is being undone", "See the other steps.")
        sent = await stream.read_stream(monitor)
    return {"ram_bytes": sent.transferred}


async def _wait_for_pause(work: StepRun, monitor: Monitor) -> None:
    """Wait until what is left fits into the allowed pause. Every pass over the RAM decides the pace of the next one."""
    settings = work.context.settings
    at_most = settings.max_bandwidth_bytes_per_s or stream.UNLIMITED_BYTES_PER_S

    async def look(event: Event) -> None:
        if event.name == "STOP":
            work.marks["paused"] = event.at
        elif event.name == "MIGRATION_PASS" and event.data["pass"] > 1:
            dirty_bytes_per_s = (await stream.read_stream(monitor)).dirty_bytes_per_s
            await stream.set_pace(
                monitor,
                bytes_per_s=pace_bytes_per_s(dirty_bytes_per_s, at_most=at_most),
                downtime_limit_ms=next_downtime_limit_ms(event.data["pass"], first_ms=settings.downtime_limit_ms),
            )

    event = await stream.wait_for_status(monitor, "pre-switchover", on_event=look)
    work.marks.setdefault("paused", event.at)


async def _switch_over(work: StepRun, monitor: Monitor) -> None:
    """The source's half of the pause.

    QEMU says `device` at once and `completed` when the target has loaded all of it.
    """
    await finish_mirrors(monitor, mirrors_of(work.view, tls=work.tls))
    work.mark("mirrors_finished")
    await stream.go_on(monitor)
    work.marks["stream_done"] = (await stream.wait_for_status(monitor, "completed")).at


async def _report(work: StepRun, monitor: Monitor) -> None:
    sent = await stream.read_stream(monitor)
    work.progress["ram"] = {"bytes": sent.total - sent.remaining, "bytes_total": sent.total}


async def undo(work: StepRun) -> None:
    """Stop sending and let the guest run again. The decision for the source has been committed before this is called.

    A guest that was paused before stays paused. Safe to call twice; a QEMU that is gone cannot be resumed and is
    noticed elsewhere.
    """
    if work.place.qemu.pid() is None:
        return
    was_running = work.view.notes[Phase.CHECK, Side.SOURCE].get("status") == "running"
    async with open_monitor(work.place.control) as monitor:
        await stream.cancel_stream(monitor)
        if was_running:
            await machine.resume(monitor)


@app.task(name=f"haulier.{Phase.MOVE_MEMORY}")
def move_memory(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
