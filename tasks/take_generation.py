"""take_generation (target), of a sync: all volumes have arrived; one transaction makes them the replica, then the
overlays are merged into their bases.

Until the transaction the replica is the last generation, from then on the new one, whatever dies when. What comes after
it only tidies up, and is done until it is done.
"""

from __future__ import annotations

import asyncio

from haulier.errors import StepFailed
from haulier.fault_points import fault_point
from haulier.services.allocations import free_allocations
from haulier.services.attempts import require_sync
from haulier.services.generations import Arrived, commit_generation
from models import Phase, Side
from tasks.celery import app
from tasks.merging import merge_replica
from tasks.old_replicas import remove_old_replicas
from tasks.open_target import prove_copy
from tasks.receiving import write_all
from tasks.runner import Notes, StepRun, execute


async def run(work: StepRun) -> Notes:
    """Take the generation. Raises StepFailed when the TPM's copy is not what was sent, or a merge fails; the replica is
    a whole generation then, too.
    """
    view = work.view
    if not view.handed_over:
        await _take(work)
        await fault_point("take_generation.committed")
    await merge_replica(work.context, require_sync(view))
    remove_old_replicas(work)
    if keys := work.keys():
        keys.remove()
    work.place.clear()
    return {}


async def _take(work: StepRun) -> None:
    view, sent = work.view, work.view.notes[Phase.SEND_GENERATION, Side.SOURCE]
    if view.crossing:
        # On disk before the rows say so. It may take long, and the lease is renewed meanwhile.
        await asyncio.to_thread(write_all, work)
    free_allocations(work.context, view.attempt_id, purpose="carrier")
    prove_copy(work, phase=Phase.SEND_GENERATION)
    looks = view.notes[Phase.CHECK, Side.SOURCE]["looks"]
    arrived = Arrived(view.generation, sent["at"], sent["digest"], sent["identity"], looks)
    if not commit_generation(work.context, work.claim, view, arrived):
        raise StepFailed("given_up", "the sync is being undone", "See the other steps.")


async def undo(work: StepRun) -> None:
    """Only before the commit: what has arrived is freed by `reserve`."""
    if keys := work.keys():
        keys.remove()


@app.task(name=f"haulier.{Phase.TAKE_GENERATION}")
def take_generation(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run, undo=undo)
