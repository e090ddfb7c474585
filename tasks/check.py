"""Phase 1, check: everything that can be refused before anything is touched, all reasons of a side at once.

The control side planned the volumes when the migration was filed; the source looks at the guest, or makes sure that
there is none, the target at itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from haulier.definition.storage import StoragePlace
from haulier.errors import Problem, Refused, StepFailed
from haulier.hypervisor import facts
from haulier.hypervisor.machine import status
from haulier.hypervisor.monitor import Monitor, open_monitor
from haulier.hypervisor.storage import driver_of
from haulier.planner.guest_ram import needed_ram_bytes, seen_use
from haulier.planner.refusals import SourceFacts, TargetFacts, foreign_job, refuse_source, refuse_target, still_there
from haulier.services.attempts import AttemptView, TransferView, require_sync
from haulier.services.generations import live_replications, newest_generation
from models import Phase, Side, TransferMethod
from tasks.celery import app
from tasks.runner import Notes, StepRun, execute
from tasks.volume_files import seen_files, source_problems, target_problems

Found = TypeVar("Found")


async def run(work: StepRun) -> Notes:
    """Look at this side. Raises Refused with all its reasons; nothing was touched then."""
    sync = work.view.replication_id is not None
    return await (_SYNC if sync else _MIGRATION)[work.claim.side](work)


async def _check_control(work: StepRun) -> Notes:
    """What filing has looked at is looked at again: the VM may have moved on between the two."""
    if not (work.view.pinned or work.view.offline):
        raise Refused("vm_not_running", f"VM {work.view.vm} has not been started", f"haulier vm start {work.view.vm}")
    return {}


async def _check_source(work: StepRun) -> Notes:
    view = work.view
    seen = _at_rest(work) if view.offline else await _running(work)
    if problems := (*seen.problems, *await _beside(source_problems, view)):
        raise Refused.because(problems)
    return {"status": seen.status, **await asyncio.to_thread(seen_files, view)}


async def _beside(look: Callable[[AttemptView], Iterator[Found]], view: AttemptView) -> tuple[Found, ...]:
    """All that is seen, in a thread: LVM takes its time to answer, and the lease goes on."""
    return await asyncio.to_thread(lambda: tuple(look(view)))


@dataclass(frozen=True, slots=True)
class _Seen:
    """The guest on the source: its state in QEMU's words, None if it does not run."""

    status: str | None
    problems: tuple[Problem, ...]


def _at_rest(work: StepRun) -> _Seen:
    """Nothing may have the volumes open."""
    # Looked at, not made.
    place = work.node.layout.vm(work.view.vm)
    daemons = {"QEMU": place.qemu, "swtpm": place.swtpm, "qemu-storage-daemon": place.reader}
    running = {name: pid for name, daemon in daemons.items() if (pid := daemon.pid())}
    return _Seen(None, tuple(still_there(work.view.vm, program=name, pid=pid) for name, pid in running.items()))


async def _fix_generation(work: StepRun) -> Notes:
    """Of a sync: what it brings over is the generation after the newest one."""
    newest = newest_generation(work.context, require_sync(work.view))
    return {"generation": newest + 1, "live_replications": live_replications(work.context, work.view.vm_id)}


async def _check_sync_source(work: StepRun) -> Notes:
    """The disks are to be read, whoever has them open; a guest in any state will do."""
    view = work.view
    seen = _at_rest(work) if view.offline else await _answering(work)
    if problems := (*seen.problems, *await _beside(source_problems, view)):
        raise Refused.because(problems)
    return {"status": seen.status, **await asyncio.to_thread(seen_files, view)}


async def _answering(work: StepRun) -> _Seen:
    async with _monitor_of(work) as monitor:
        jobs = await monitor.execute("query-block-jobs")
        return _Seen(await status(monitor), tuple(foreign_job(work.view.vm, job["device"]) for job in jobs))


@contextlib.asynccontextmanager
async def _monitor_of(work: StepRun) -> AsyncIterator[Monitor]:
    try:
        async with open_monitor(work.place.control) as monitor:
            yield monitor
    except StepFailed as error:
        words = f"the QEMU of {work.view.vm} does not answer: {error.problem.message}"
        raise Refused("guest_gone", words) from error


async def _running(work: StepRun) -> _Seen:
    view = work.view
    async with _monitor_of(work) as monitor:
        guest = await status(monitor)
        jobs = await monitor.execute("query-block-jobs")
        blocked = (await monitor.execute("query-migrate")).get("blocked-reasons", [])
    problems = refuse_source(
        SourceFacts(
            vm=view.vm,
            status=guest,
            accel=view.pinned["accel"],
            qemu_version=view.source.facts["qemu_version"],
            ram_kib=view.pinned["ram_kib"],
            foreign_jobs=tuple(job["device"] for job in jobs),
            blocked_reasons=tuple(blocked),
        )
    )
    if view.tpm and work.place.swtpm.pid() is None:
        problems += (Problem("swtpm_gone", f"the swtpm of {view.vm} does not run", "Stop and start the VM."),)
    return _Seen(guest, problems)


def _ram_kib(work: StepRun) -> int:
    """What the guest needs of RAM here, by policy."""
    policy, source = work.context.settings.placement_ram, work.view.source.facts
    used = seen_use(source, work.view.vm, policy=policy)
    return needed_ram_bytes(work.view.pinned["ram_kib"] * 1024, used) // 1024


async def _check_target(work: StepRun) -> Notes:
    view = work.view
    needed: dict[str, int] = defaultdict(int)
    free: dict[str, int] = {}
    for volume, room in await _beside(_rooms, view):
        needed[volume.target_storage] += _room_for(view, volume)
        free[volume.target_storage] = room
    # Looked at, not made: a target that refuses was not touched.
    place = work.node.layout.vm(view.vm)
    daemons = {"qemu": place.qemu, "swtpm": place.swtpm, "qemu-storage-daemon": place.carrier}
    at_rest = view.offline or view.replication_id is not None
    problems = refuse_target(
        TargetFacts(
            node=view.target.name,
            facts=view.target.facts,
            machine=view.pinned.get("machine"),
            accel=None if at_rest else view.pinned["accel"],
            ram_kib=0 if at_rest else _ram_kib(work),
            ram_free_bytes=facts.memory()["ram_free_bytes"],
            needed_by_storage=needed,
            free_by_storage=free,
            has_tpm=view.tpm is not None,
            source_libtpms=view.source.facts.get("libtpms_version"),
            bridges_missing=_missing_bridges(work),
            leftovers=tuple(f"{name} (pid {pid})" for name, daemon in daemons.items() if (pid := daemon.pid())),
        )
    )
    if problems := (*problems, *await _beside(target_problems, view)):
        raise Refused.because(problems)
    return {}


def _rooms(view: AttemptView) -> Iterator[tuple[TransferView, int]]:
    """Each volume that is to be made, with the room on its storage where that says how much it has."""
    rooms: dict[StoragePlace, int | None] = {}
    for volume in view.crossing:
        if volume.target_at not in rooms:
            driver = driver_of(volume.target_at)
            rooms[volume.target_at] = None if driver.problem() else driver.free_bytes()
        if (room := rooms[volume.target_at]) is not None:
            yield volume, room


def _room_for(view: AttemptView, volume: TransferView) -> int:
    """The bytes that a volume may take on the target."""
    if volume.method is TransferMethod.COPY:
        return view.file_bytes(volume)
    # How much was written since is known only when the disks are open; an overlay for which there is no room is undone.
    return 0 if volume.base_path and volume.replica else volume.size_bytes


def _missing_bridges(work: StepRun) -> tuple[str, ...]:
    if work.view.target.network != "bridge" or work.view.replication_id is not None:
        return ()
    bridges = {nic.bridge for nic in work.view.definition.nics if nic.bridge}
    return tuple(sorted(bridge for bridge in bridges if not Path("/sys/class/net", bridge).exists()))


_MIGRATION = {Side.CONTROL: _check_control, Side.SOURCE: _check_source, Side.TARGET: _check_target}
_SYNC = {Side.CONTROL: _fix_generation, Side.SOURCE: _check_sync_source, Side.TARGET: _check_target}


@app.task(name=f"haulier.{Phase.CHECK}")
def check(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run)
