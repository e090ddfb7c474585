"""Where a disk differs from its replica, said to the reader that has it open: by a dirty bitmap, as if it had been
written there since.

QEMU has no command for that. So zeroes are written, at those places, to a node that holds nothing and is as large as
the disk; its bitmap is then merged into one of the disk's. The data is touched nowhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from haulier.errors import StepFailed
from haulier.hypervisor.devices import PREFIX, node_name
from haulier.hypervisor.generations import adding_bitmap, read_bitmaps
from haulier.hypervisor.monitor import Monitor
from haulier.hypervisor.tools import run_beside

COMPARED = f"{PREFIX}compared"
"""The bitmap of a disk that says where it differs from its replica."""

Ranges = Sequence[tuple[int, int]]
# qemu-io takes less than 2 GiB at a time.
_AT_ONCE_BYTES = 1 << 30


async def mark_differences(monitor: Monitor, device: str, differing: Ranges, *, size_bytes: int, socket: Path) -> None:
    """Give a disk in the reader the bitmap `COMPARED` that has these ranges, each a start and a length in bytes.

    `socket` is a path for a Unix socket. Raises StepFailed with the words of who failed; the disk is as it was, but may
    have a bitmap that only the reader remembers.
    """
    blank = f"{PREFIX}differs-{device}"
    await monitor.execute_raw(
        "blockdev-add", {"driver": "null-co", "node-name": blank, "size": size_bytes, "read-zeroes": True}
    )
    bitmaps = [adding_bitmap(node, COMPARED, persistent=False) for node in (blank, node_name(device))]
    await monitor.execute("transaction", actions=bitmaps)
    await _write_zeroes(monitor, blank, differing, socket=socket)
    await monitor.execute_raw(
        "block-dirty-bitmap-merge",
        {"node": node_name(device), "target": COMPARED, "bitmaps": [{"node": blank, "name": COMPARED}]},
    )
    await monitor.execute("blockdev-del", node_name=blank)
    # What it does not say is not sent.
    marked = sum(found.dirty_bytes for found in await read_bitmaps(monitor, [device]) if found.name == COMPARED)
    if marked < (differ := sum(length for _, length in differing)):
        raise StepFailed("not_marked", f"{device} differs by {differ} bytes, and {marked} are marked", "A defect.")


async def _write_zeroes(monitor: Monitor, node: str, ranges: Ranges, *, socket: Path) -> None:
    socket.unlink(missing_ok=True)
    await monitor.execute_raw("nbd-server-start", {"addr": {"type": "unix", "data": {"path": os.fspath(socket)}}})
    try:
        await monitor.execute("block-export-add", type="nbd", id=node, node_name=node, name=node, writable=True)
        target = {"driver": "nbd", "server": {"type": "unix", "path": os.fspath(socket)}, "export": node}
        commands = "".join(f"write -q -z {start} {length}\n" for start, length in _in_parts(ranges))
        done = await run_beside(["qemu-io", f"json:{json.dumps(target)}"], told=commands)
        if done.status != 0:
            raise StepFailed("not_marked", f"the differences of {node} were not taken: {done.words}", "qemu-io")
    finally:
        await monitor.execute("nbd-server-stop")


def _in_parts(ranges: Ranges) -> Iterator[tuple[int, int]]:
    for start, length in ranges:
        for at in range(start, start + length, _AT_ONCE_BYTES):
            yield at, min(_AT_ONCE_BYTES, start + length - at)
