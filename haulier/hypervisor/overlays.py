"""A disk that came as a difference: its guest runs on an overlay, which is merged into the base beside it.

The base is the older copy that was there before, and becomes the disk. Until the merge is over the two together are it,
also when QEMU dies in between: `qemu-img commit` does the same for a guest that does not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haulier.errors import StepFailed
from haulier.hypervisor.devices import PREFIX, node_name, overlay_node
from haulier.hypervisor.disks import wait_until_done
from haulier.hypervisor.generations import adding_bitmap
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
        adding_bitmap(node, bitmap, persistent=persistent)
        for node, persistent in nodes
        if bitmap not in known.get(node, ())
    ]
    if actions:
        await monitor.execute("transaction", actions=actions)


async def bring_together(monitor: Monitor, device: str) -> None:
    """Copy what the overlay of a running guest's disk holds into its base, until the base lacks only what the guest is
    just writing. Safe to call again. Raises StepFailed with QEMU's words; the guest goes on with both then.
    """
    top, job = overlay_node(device), _job(device)
    running = await _find(monitor, job)
    if running is None and await _is_used(monitor, top):
        await monitor.execute("block-commit", job_id=job, device=top)
        running = {"ready": False}
    if running is not None and not running["ready"]:
        await _wait_until_ready(monitor, job)


async def go_on_with_base(monitor: Monitor, device: str, *, bitmap: str | None, persistent: bool) -> None:
    """With the guest standing still: its disk is the base alone from now on. Safe to call again.

    The overlay's file must be gone before the guest runs: to merge it once more would undo what was written since.
    `bitmap` says on the base what it said on the overlay, and goes on there; `persistent` as in `record_writes`. Raises
    StepFailed when the two have not been brought together; the guest's disk is both still.
    """
    base, top, job = node_name(device), overlay_node(device), _job(device)
    if await _find(monitor, job) is None:
        if await _is_used(monitor, top):
            words = f"the merge of {device} has ended before its time"
            raise StepFailed("merge_failed", words, "Is the target's storage full?")
        return
    if bitmap:
        await record_writes(monitor, [(base, persistent)], bitmap=bitmap)
        source = {"node": top, "name": bitmap}
        await monitor.execute("block-dirty-bitmap-merge", node=base, target=bitmap, bitmaps=[source])
    await monitor.execute("block-job-complete", device=job)
    await wait_until_done(monitor, [job])


async def is_on_base(monitor: Monitor, device: str) -> bool:
    """Whether the guest's disk is the base alone: then the overlay's file is worth nothing, and must go."""
    return not await _is_used(monitor, overlay_node(device))


async def forget_overlay(monitor: Monitor, device: str) -> None:
    """Close the overlay of a disk that is on its base. Safe to call again."""
    top = overlay_node(device)
    await _close(monitor, top)
    await _close(monitor, f"file-{top}")


async def _close(monitor: Monitor, node: str) -> None:
    if await _has(monitor, node):
        await monitor.execute("blockdev-del", node_name=node)


def _job(device: str) -> str:
    return f"{PREFIX}merge-{device}"


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
