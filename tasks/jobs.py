"""How far QEMU's jobs are is written down: for people, and so that one that stands still is seen. And each is told how
fast it may go from now on.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from haulier.hypervisor.disks import read_progress, set_speeds
from haulier.hypervisor.monitor import Monitor
from haulier.services.attempts import update_transfers
from tasks.runner import StepRun


async def watch_jobs(work: StepRun, monitor: Monitor, *, before: Mapping[str, int] = MappingProxyType({})) -> None:
    """Look once, and have the jobs share what the step may use now."""
    work.allowance.has_told(await set_speeds(monitor, work.allowance.of_each))
    await report_jobs(work, monitor, before=before)


async def report_jobs(work: StepRun, monitor: Monitor, *, before: Mapping[str, int] = MappingProxyType({})) -> None:
    """Look once. `before` is what earlier jobs have sent of each device, in bytes."""
    ids, found = {volume.device: volume.id for volume in work.view.transfers}, {}
    for each in await read_progress(monitor):
        if each.device in ids:
            sent = before.get(each.device, 0)
            found[ids[each.device]] = seen = {"bytes": sent + each.done, "bytes_total": sent + each.total}
            work.progress[each.device] = seen
    update_transfers(work.context, found)
