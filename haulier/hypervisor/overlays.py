"""A disk that came as a difference: its guest runs on an overlay, which is merged into the base beside it.

The base is the older copy that was there before, and becomes the disk. Until the merge is over the two together are it,
also when QEMU dies in between: `qemu-img commit` does the same for a guest that does not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from haulier.errors import StepFailed
from haulier.hypervisor.devices import PREFIX, node_name, overlay_node
from haulier.hypervisor.disks import wait_until_done
from haulier.hypervisor.monitor import Monitor


async def record_writes(monitor: Monitor, nodes: Sequence[tuple[str, bool]], *, bitmap: str) -> None:
    """Record in `bitmap` what is written to these block nodes from now on, in one transaction. With each node: whether
    its image has room for a bitmap. One that is there already goes on.
    """
    known = {
        node["node-name"]: {found.get("name") for found in node.get("dirty-bitmaps", ())}
        for node in await monitor.execute("query-named-block-nodes", flat=True)
    }
    actions = [
        {"type": "block-dirty-bitmap-add", "data": {"node": node, "name": bitmap, "persistent": persistent}}
        for node, persistent in nodes
        if bitmap not in known.get(node, ())
    ]
    if actions:
        await monitor.execute("transaction", actions=actions)


async def merge_running(monitor: Monitor, device: str, *, bitmap: str | None, persistent: bool) -> None:
    """Merge the overlay of a running guest's disk into its base, and have the guest go on with the base alone.

    `bitmap` records what the guest writes to the overlay, and goes on on the base; `persistent` as in `record_writes`.
    Safe to call again after having died anywhere in it, as long as QEMU lives. Raises StepFailed with QEMU's words; the
    guest goes on with both then.
    """
    base, top, job = node_name(device), overlay_node(device), f"{PREFIX}merge-{device}"
    if not await _has(monitor, top):
        return
    running = await _find(monitor, job)
    if running is None and await _is_used(monitor, top):
        await monitor.execute("block-commit", job_id=job, device=top)
        running = {"ready": False}
    if running is not None:
        if not running["ready"]:
            await _wait_until_ready(monitor, job)
        # Now all that the job writes into the base is what the guest writes.
        if bitmap:
            await record_writes(monitor, [(base, persistent)], bitmap=bitmap)
        await monitor.execute("block-job-complete", device=job)
        await wait_until_done(monitor, [job])
    if bitmap:
        with suppress(
            StepFailed
        ):  # the overlay's own went with a QEMU that has died since; then the base's is not there
            source = {"node": top, "name": bitmap}
            await monitor.execute("block-dirty-bitmap-merge", node=base, target=bitmap, bitmaps=[source])
    for node in (top, f"file-{top}"):
        await monitor.execute("blockdev-del", node_name=node)


async def _has(monitor: Monitor, node: str) -> bool:
    nodes = await monitor.execute("query-named-block-nodes", flat=True)
    return any(each["node-name"] == node for each in nodes)


async def _is_used(monitor: Monitor, node: str) -> bool:
    """Whether a guest's device is attached to the node."""
    inserted = [each.get("inserted", {}) for each in await monitor.execute("query-block")]
    return any(each.get("node-name") == node for each in inserted)


async def _find(monitor: Monitor, job: str) -> dict[str, Any] | None:
    jobs = await monitor.execute("query-block-jobs")
    return next((each for each in jobs if each["device"] == job), None)


async def _wait_until_ready(monitor: Monitor, job: str) -> None:
    event = await monitor.wait_for(
        lambda event: (
            event.data.get("device") == job
            and event.name in ("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
        )
    )
    if event.name != "BLOCK_JOB_READY":
        words = event.data.get("error") or event.name
        raise StepFailed(
            "merge_failed", f"the merge of {job.removeprefix(PREFIX)} ended: {words}", "Is the storage full?"
        )
