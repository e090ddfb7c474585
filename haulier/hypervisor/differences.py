"""Where a disk differs from its replica, said to the reader that has it open: by a dirty bitmap, as if it had been
written there since.

QEMU has no command for that. So zeroes are written, at those places, to a node that holds nothing and is as large as
the disk; its bitmap is then merged into one of the disk's. The data is touched nowhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from haulier.errors import StepFailed
from haulier.hypervisor.devices import PREFIX, node_name
from haulier.hypervisor.generations import adding_bitmap, read_bitmaps
from haulier.hypervisor.monitor import Monitor
from haulier.hypervisor.tools import run_beside

COMPARED = f"{PREFIX}compared"
"""The bitmap of a disk that says where it differs from its replica."""

Range = tuple[int, int]
"""A start and a length in bytes."""
# qemu-io takes less than 2 GiB at a time, and so many commands in half a second.
_AT_ONCE_BYTES = 1 << 30
_AT_ONCE = 4096


class Marks:
    """Where a disk differs, as it is found out."""

    def __init__(self, node: str, socket: Path) -> None:
        target = {"driver": "nbd", "server": {"type": "unix", "path": os.fspath(socket)}, "export": node}
        self._words = ["qemu-io", f"json:{json.dumps(target)}"]
        self._waiting: list[Range] = []
        self.bytes = 0

    async def add(self, ranges: Iterable[Range]) -> None:
        """These differ, too. Raises StepFailed with qemu-io's words."""
        self._waiting += ranges
        if len(self._waiting) >= _AT_ONCE:
            await self.flush()

    async def flush(self) -> None:
        """Mark what is not marked yet. Raises StepFailed with qemu-io's words."""
        ranges, self._waiting = self._waiting, []
        if not ranges:
            return
        commands = "".join(f"write -q -z {start} {length}\n" for start, length in _in_parts(ranges))
        done = await run_beside(self._words, told=commands)
        if done.status != 0:
            raise StepFailed("not_marked", f"where a disk differs was not taken: {done.words}", "qemu-io")
        self.bytes += sum(length for _, length in ranges)


@asynccontextmanager
async def marking(monitor: Monitor, device: str, *, size_bytes: int, socket: Path) -> AsyncIterator[Marks]:
    """Give a disk in the reader the bitmap `COMPARED`, of what is marked inside the block.

    `socket` is a path for a Unix socket. Raises StepFailed with the words of who failed; the disk is as it was, but may
    have a bitmap that only the reader remembers.
    """
    blank = f"{PREFIX}differs-{device}"
    await monitor.execute_raw(
        "blockdev-add", {"driver": "null-co", "node-name": blank, "size": size_bytes, "read-zeroes": True}
    )
    bitmaps = [adding_bitmap(node, COMPARED, persistent=False) for node in (blank, node_name(device))]
    await monitor.execute("transaction", actions=bitmaps)
    marks = Marks(blank, socket)
    socket.unlink(missing_ok=True)
    await monitor.execute_raw("nbd-server-start", {"addr": {"type": "unix", "data": {"path": os.fspath(socket)}}})
    try:
        await monitor.execute("block-export-add", type="nbd", id=blank, node_name=blank, name=blank, writable=True)
        yield marks
        await marks.flush()
    finally:
        await monitor.execute("nbd-server-stop")
    await monitor.execute_raw(
        "block-dirty-bitmap-merge",
        {"node": node_name(device), "target": COMPARED, "bitmaps": [{"node": blank, "name": COMPARED}]},
    )
    await monitor.execute("blockdev-del", node_name=blank)
    # What it does not say is not sent.
    marked = sum(found.dirty_bytes for found in await read_bitmaps(monitor, [device]) if found.name == COMPARED)
    if marked < marks.bytes:
        raise StepFailed("not_marked", f"{device} differs by {marks.bytes} bytes, and {marked} are marked", "A defect.")


def _in_parts(ranges: Iterable[Range]) -> Iterator[Range]:
    for start, length in ranges:
        for at in range(start, start + length, _AT_ONCE_BYTES):
            yield at, min(_AT_ONCE_BYTES, start + length - at)
