"""Phase 1, check: everything that can be refused before anything is touched, all reasons of a side at once.

The control side planned the volumes when the migration was filed; the source looks at the running guest, the target at
itself.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from haulier.errors import Problem, Refused, StepFailed
from haulier.hypervisor import facts
from haulier.hypervisor.images import free_bytes, image_info
from haulier.hypervisor.machine import status
from haulier.hypervisor.monitor import open_monitor
from haulier.hypervisor.volume_paths import problem_of_path
from haulier.planner.refusals import SourceFacts, TargetFacts, refuse_source, refuse_target
from haulier.services.attempts import TransferView
from models import Phase, Side, TransferMethod, VolumeRole
from tasks.celery import app
from tasks.runner import Notes, StepRun, execute


async def run(work: StepRun) -> Notes:
    """Look at this side. Raises Refused with all its reasons; nothing was touched then."""
    sides = {Side.CONTROL: _check_control, Side.SOURCE: _check_source, Side.TARGET: _check_target}
    return await sides[work.claim.side](work)


async def _check_control(work: StepRun) -> Notes:
    """What filing has looked at is looked at again: the VM may have moved on between the two."""
    if not work.view.pinned:
        raise Refused("vm_not_running", f"VM {work.view.vm} has not been started", f"haulier vm start {work.view.vm}")
    return {}


async def _check_source(work: StepRun) -> Notes:
    view = work.view
    try:
        async with open_monitor(work.place.control) as monitor:
            guest = await status(monitor)
            jobs = await monitor.execute("query-block-jobs")
            blocked = (await monitor.execute("query-migrate")).get("blocked-reasons", [])
    except StepFailed as error:
        raise Refused("guest_gone", f"the QEMU of {view.vm} does not answer: {error.problem.message}") from error
    problems = refuse_source(
        SourceFacts(
            vm=view.vm,
            status=guest,
            accel=view.pinned["accel"],
            qemu_version=view.source.facts["qemu_version"],
            ram_kib=view.pinned["ram_kib"],
            foreign_jobs=tuple(job["device"] for job in jobs),
            blocked_reasons=tuple(blocked),
            volume_problems=tuple(problem for volume in view.transfers for problem in _volume_problems(volume)),
        )
    )
    if view.tpm and work.place.swtpm.pid() is None:
        problems += (Problem("swtpm_gone", f"the swtpm of {view.vm} does not run", "Stop and start the VM."),)
    if problems:
        raise Refused.because(problems)
    return {"status": guest}


def _volume_problems(volume: TransferView) -> list[Problem]:
    if volume.method is TransferMethod.NONE:
        return []
    if problem := problem_of_path(volume.source_path, volume.source_folder):
        return [problem]
    if not volume.source_path.exists():
        return [Problem("volume_missing", f"{volume.device}: {volume.source_path} is not there", "Where is it?")]
    if volume.role is VolumeRole.TPMSTATE:
        return []
    found = image_info(volume.source_path, format=volume.format)
    problems = []
    if found.backing:
        problems.append(
            Problem(
                "volume_is_clone", f"{volume.device} hangs on {found.backing}, which stays here", "Flatten it first."
            )
        )
    if found.snapshots:
        problems.append(
            Problem("internal_snapshots", f"{volume.device} has internal snapshots", "A mirror would lose them.")
        )
    if found.size_bytes != volume.size_bytes:
        problems.append(
            Problem(
                "size_differs",
                f"{volume.device} has {found.size_bytes} bytes, the database says {volume.size_bytes}",
                "Define the VM again with the right size.",
            )
        )
    return problems


async def _check_target(work: StepRun) -> Notes:
    view = work.view
    needed: dict[str, int] = defaultdict(int)
    free: dict[str, int] = {}
    for volume in view.transfers:
        if volume.method is not TransferMethod.NONE:
            needed[volume.target_storage] += volume.size_bytes
            free[volume.target_storage] = free_bytes(volume.target_path.parent)
    astray = [problem_of_path(volume.target_path, volume.target_folder) for volume in view.transfers]
    # Looked at, not made: a target that refuses was not touched.
    place = work.node.layout.vm(view.vm)
    daemons = {"qemu": place.qemu, "swtpm": place.swtpm, "qemu-storage-daemon": place.carrier}
    problems = refuse_target(
        TargetFacts(
            node=view.target.name,
            facts=view.target.facts,
            machine=view.pinned["machine"],
            accel=view.pinned["accel"],
            ram_kib=view.pinned["ram_kib"],
            ram_free_bytes=facts.memory()["ram_free_bytes"],
            needed_by_storage=needed,
            free_by_storage=free,
            taken_paths=tuple(str(volume.target_path) for volume in view.transfers if volume.target_path.exists()),
            has_tpm=view.tpm is not None,
            source_libtpms=view.source.facts.get("libtpms_version"),
            bridges_missing=_missing_bridges(work),
            leftovers=tuple(f"{name} (pid {pid})" for name, daemon in daemons.items() if (pid := daemon.pid())),
        )
    )
    problems += tuple(problem for problem in astray if problem)
    if problems:
        raise Refused.because(problems)
    return {}


def _missing_bridges(work: StepRun) -> tuple[str, ...]:
    if work.view.target.network != "bridge":
        return ()
    bridges = {nic.bridge for nic in work.view.definition.nics if nic.bridge}
    return tuple(sorted(bridge for bridge in bridges if not Path("/sys/class/net", bridge).exists()))


@app.task(name=f"haulier.{Phase.CHECK}")
def check(step_id: int) -> None:
    """Celery's entry to this phase."""
    execute(step_id, run=run)
