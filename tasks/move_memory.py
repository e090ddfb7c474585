"""Phase 7, move_memory (source): RAM crosses while the guest runs; in the pause the mirrors are finished and the
devices sent.

It is done when the source's QEMU has seen the target load everything: such a QEMU does not resume by itself any more.
The end of this step, with the TPM's digest taken after the last command, is what the target waits for before it takes
the guest. A stream that fails before leaves the guest to the source, and the target without this step's end can never
take it.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from haulier.clock import steady_s
from haulier.errors import StepFailed
from haulier.fault_points import fault_point
from haulier.hypervisor import machine, stream
from haulier.hypervisor.dead_links import cut_on_failure
from haulier.hypervisor.disks import finish_mirrors, read_progress
from haulier.hypervisor.monitor import Event, Monitor, open_monitor
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.swtpm import stop_swtpm
from haulier.hypervisor.tpm_state import read_state
from haulier.planner.convergence import FIRST_PACE, LOOK_S, Pace, StreamFacts, choose_pace
from haulier.services.attempts import migration_state, note_source_done, note_tpm_let_go
from haulier.services.chain import begin_pause
from haulier.services.ownership import taken_topic
from models import MigrationState, Phase, Side
from tasks.bandwidth import Allowance
from tasks.celery import app
from tasks.mirror_disks import mirrors_of
from tasks.runner import Notes, StepRun, beside, execute, patiently, reporting

# A nudge that was lost costs so much, and nothing else.
_TAKE_OVER_S = 1.0
# A pause of this length is one in which something is wrong, or much is left to be brought over.
_LONG_PAUSE_S = 0.2


async def run(work: StepRun) -> Notes:
    """Send the guest.

    Raises StepFailed with QEMU's words when the stream or a mirror fails; the guest stays the source's.
    """
    view, settings = work.view, work.context.settings
    if view.handed_over:
        # The note was written and the target has taken the guest; only this step's end was lost.
        _let_go_of_tpm(work)
        return {}
    port = view.notes[Phase.HAND_OVER, Side.TARGET]["stream_port"]
    await work.allowance.pace()
    pacer = Pacer(work.allowance, first_ms=settings.downtime_limit_ms, may_pause=view.may_pause)
    pacer.told = replace(FIRST_PACE, bytes_per_s=min(pacer.at_most, FIRST_PACE.bytes_per_s))
    async with (
        work.context.signals.listen_async(taken_topic(view.attempt_id)) as bell,
        open_monitor(work.place.control) as monitor,
    ):
        if keys := work.keys():
            await stream.ensure_key(monitor, keys, server=False)
        pacer.guest_runs = await machine.status(monitor) == "running"
        work.note(guest_runs=pacer.guest_runs)
        await stream.send(
            monitor,
            server=NbdServer(view.target.address, port),
            key=work.greeting_key(),
            max_bandwidth_bytes_per_s=pacer.told.bytes_per_s,
            downtime_limit_ms=pacer.told.downtime_limit_ms,
        )
        async with contextlib.AsyncExitStack() as pause:
            async with cut_on_failure(monitor), reporting(lambda: _report(work, monitor)):
                await _wait_for_pause(work, monitor, pacer)
                await pause.enter_async_context(beside(_shorten_leases(work)))
                await _switch_over(work, monitor)
            await _note(work, was_running=pacer.guest_runs)
            await fault_point("move_memory.noted")
            # The end of this step needs the database and a core, and so does the target now, with the guest paused.
            await bell.wait(_TAKE_OVER_S)
        if view.shares_tpm:
            state = partial(migration_state, work.context, view.migration_id)
            while await patiently(work, state, tried="taken_asked") is MigrationState.RUNNING:
                await bell.wait(_TAKE_OVER_S)
            await fault_point("move_memory.handed_over")
            _let_go_of_tpm(work)
        sent = await stream.read_stream(monitor)
    return {"ram_bytes": sent.transferred}


async def _note(work: StepRun, *, was_running: bool) -> None:
    """Let the target go on: our QEMU knows that it has loaded, and this is the TPM's last digest.

    Nothing else is left to be done. A database that is away for a moment is waited for, as long as the lease lasts.
    """
    tpm = work.view.tpm
    notes = {"digest": read_state(tpm.source_path).digest if tpm else None, "was_running": was_running}
    if not await patiently(
        work, lambda: note_source_done(work.context, work.claim, notes, work.marks), tried="note_tried"
    ):
        raise StepFailed("given_up", "the migration is being undone", "See the other steps.")


def _let_go_of_tpm(work: StepRun) -> None:
    """The guest is the target's: no swtpm of ours may write to a state that both nodes see, and the target waits."""
    if work.view.shares_tpm and migration_state(work.context, work.view.migration_id) is MigrationState.HANDED_OVER:
        stop_swtpm(work.place, patience_s=0.0)
        note_tpm_let_go(work.context, work.claim)


async def _wait_for_pause(work: StepRun, monitor: Monitor, pacer: Pacer) -> None:
    """Wait until what is left fits into the allowed pause; how fast it is sent follows what is left."""

    async def look(event: Event) -> None:
        if event.name in ("STOP", "RESUME"):
            pacer.stopped = event.name == "STOP"
            work.marks["paused"] = event.at

    async def pace() -> None:
        ran = pacer.guest_runs
        await pacer.look(monitor)
        if pacer.guest_runs is not ran:
            # For whoever lets the guest run again after a failure: it must be one that ran.
            work.note(guest_runs=pacer.guest_runs)

    async with reporting(pace, every_s=LOOK_S):
        event = await stream.wait_for_status(monitor, "pre-switchover", on_event=look)
    if not pacer.guest_runs:
        work.marks["paused"] = event.at


@dataclass(slots=True)
class Pacer:
    """Holds the pace that QEMU was told last, since when the guest is waited for to settle, and whether it runs:
    somebody may pause it meanwhile.
    """

    allowance: Allowance
    first_ms: int
    may_pause: bool
    told: Pace = FIRST_PACE
    guest_runs: bool = True
    stopped: bool = False
    settles_since: float | None = None

    @property
    def at_most(self) -> int:
        """The step's share of the bandwidth as it is now."""
        return self.allowance.of_each() or stream.UNLIMITED_BYTES_PER_S

    async def look(self, monitor: Monitor) -> None:
        """Look how the stream goes and change the pace if need be."""
        if self.stopped or not self.guest_runs:
            word = await machine.status(monitor)
            # QEMU's own pause, at the end, is `finish-migrate`, whether the guest ran or not.
            self.guest_runs = self.guest_runs if word == "finish-migrate" else word == "running"
        seen = await stream.read_stream(monitor)
        if seen.passes > 1 and self.settles_since is None:
            self.settles_since = steady_s()
        settling_s = steady_s() - self.settles_since if self.settles_since is not None else 0.0
        facts = StreamFacts(seen.remaining, seen.dirty_bytes_per_s, seen.passes, settling_s)
        pace = choose_pace(facts, at_most=self.at_most, first_ms=self.first_ms, may_pause=self.may_pause)
        # Before the stream has begun nothing is known of what is left.
        if seen.status == "active" and seen.total and pace != self.told:
            await stream.set_pace(monitor, bytes_per_s=pace.bytes_per_s, downtime_limit_ms=pace.downtime_limit_ms)
            self.told = pace
        if self.told == pace:
            self.allowance.has_told()


async def _switch_over(work: StepRun, monitor: Monitor) -> None:
    """The source's half of the pause.

    QEMU says `device` at once and `completed` when the target has loaded all of it.
    """
    await fault_point("move_memory.paused")
    await finish_mirrors(monitor, mirrors_of(work.view, tls=work.tls))
    work.mark("mirrors_finished")
    await stream.go_on(monitor)
    work.marks["stream_done"] = (await stream.wait_for_status(monitor, "completed")).at
    await fault_point("move_memory.completed")


async def _shorten_leases(work: StepRun) -> None:
    """In a pause that lasts, who dies is to be noticed soon; one that is as short as usual does not pay for that."""
    await asyncio.sleep(_LONG_PAUSE_S)
    with contextlib.suppress(SQLAlchemyError):
        await asyncio.to_thread(begin_pause, work.context, work.claim, paused_at=work.marks["paused"])


async def _report(work: StepRun, monitor: Monitor) -> None:
    sent = await stream.read_stream(monitor)
    # What is left may not change for a while, under a guest that dirties as fast as is sent; what was sent does.
    work.progress["ram"] = {
        "bytes": sent.total - sent.remaining,
        "bytes_total": sent.total,
        "sent_bytes": sent.transferred,
    }
    if "paused" in work.marks:
        # What moves now is the mirrors: a guest that writes much has left them much to bring over. Before, they move
        # with whatever it writes, and would hide that its RAM does not.
        work.progress["mirrored_bytes"] = {each.device: each.done for each in await read_progress(monitor)}


async def undo(work: StepRun) -> None:
    """Stop sending and let the guest run again. The decision for the source has been committed before this is called.

    A guest that was paused before stays paused. Safe to call twice; a QEMU that is gone cannot be resumed and is
    noticed elsewhere.
    """
    if work.place.qemu.pid() is None:
        return
    checked = work.view.notes[Phase.CHECK, Side.SOURCE].get("status") == "running"
    was_running = work.view.notes[Phase.MOVE_MEMORY, Side.SOURCE].get("guest_runs", checked)
    async with open_monitor(work.place.control) as monitor:
        await stream.cancel_stream(monitor)
        if was_running:
            await machine.resume(monitor)


@app.task(name=f"haulier.{Phase.MOVE_MEMORY}")
def move_memory(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
