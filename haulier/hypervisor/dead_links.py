"""Connections to the other host that do not answer any more, cut from our side.

A QEMU that pauses its guest waits for every byte that is under way to a mirror's target, and its main loop stands still
meanwhile: over a dead link it hears no command for a quarter of an hour, until TCP gives up, and the guest stays
paused. Only `yank`, out of band, still reaches it, and only in a conversation that was opened before (7.2).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from haulier.errors import HaulierError
from haulier.hypervisor.devices import PREFIX
from haulier.hypervisor.monitor import Monitor


@asynccontextmanager
async def cut_on_failure(monitor: Monitor) -> AsyncIterator[None]:
    """When the block fails or is cancelled, the stream and all mirrors of this QEMU end with an error at once.

    They are worth nothing then, and whoever undoes them finds a QEMU that answers.
    """
    try:
        yield
    except BaseException:
        with suppress(HaulierError):
            await cut_links(monitor)
        raise


async def cut_links(monitor: Monitor) -> None:
    """End the stream and all mirrors of this QEMU with an error, whatever they wait for. Safe to call twice."""
    found = await monitor.execute_raw("query-yank", {}, urgent=True)
    if ours := [instance for instance in found if _is_ours(instance)]:
        await monitor.execute_raw("yank", {"instances": ours}, urgent=True)


def _is_ours(instance: dict[str, Any]) -> bool:
    return instance["type"] == "migration" or str(instance.get("node-name", "")).startswith(PREFIX)
