"""Overlays of replicas that are merged into their bases: at the end of a sync, and wherever one was left unmerged."""

from __future__ import annotations

import asyncio
from pathlib import Path

from haulier.errors import NeedsOperator, StepFailed
from haulier.fault_points import fault_point
from haulier.hypervisor.images import flush, flush_folder, merge_overlay, remove_image
from haulier.hypervisor.processes import wait_until_released
from haulier.hypervisor.storage import driver_of
from haulier.services.context import Context
from haulier.services.replicas import Overlay, overlays_of, record_merged


async def merge_replica(context: Context, replication_id: int) -> None:
    """Merge all overlays of a replication. Safe to call twice, and after having died anywhere in it.

    Raises StepFailed with qemu-img's words; base and overlay together are the replica still.
    """
    for overlay in overlays_of(context, replication_id):
        await _merge(context, overlay)


async def _merge(context: Context, overlay: Overlay) -> None:
    driver = driver_of(overlay.at)
    driver.require_usable()
    driver.require(overlay.path, error=NeedsOperator)
    if not overlay.base.exists():
        raise StepFailed("replica_missing", f"{overlay.base} of a replica is not there", "Is its storage mounted?")
    # Its file goes before its row: a row without a file was merged.
    await merge_into(overlay.base, overlay.path)
    record_merged(context, overlay)


async def merge_into(base: Path, overlay: Path) -> None:
    """Merge an overlay that no QEMU has open into its base, and remove it. Safe to call twice.

    Raises StepFailed with qemu-img's words. A merge that has outlived its worker is waited for.
    """
    if not overlay.exists():
        return
    await wait_until_released(overlay)
    await merge_overlay(overlay)
    await asyncio.to_thread(flush, base)
    await fault_point("take_generation.merged")
    remove_image(overlay)
    flush_folder(overlay.parent)
