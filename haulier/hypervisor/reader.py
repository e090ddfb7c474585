"""The reader: a storage daemon that opens the disks of a VM that does not run, and obeys on a monitor as QEMU would.

With it a sync is the same whether the guest runs or not: the same jobs, the same bitmaps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from haulier.definition.storage import Image
from haulier.errors import HaulierError, StepFailed
from haulier.hypervisor.devices import file_nodes, node_name
from haulier.hypervisor.layout import VmPlace, listening_socket
from haulier.hypervisor.monitor import Monitor, open_monitor
from haulier.hypervisor.processes import end, end_in_order, last_words, log_size, spawn
from haulier.hypervisor.tls import KeyFolder

_CLOSE_S = 120.0


@dataclass(frozen=True, slots=True)
class ReadDisk:
    """One disk that the reader opens."""

    device: str
    image: Image


@asynccontextmanager
async def open_reader(place: VmPlace, disks: Sequence[ReadDisk], *, keys: KeyFolder | None) -> AsyncIterator[Monitor]:
    """Open the disks, and talk to who has them; they are closed again with the block. `keys` are for the target's
    exports: here they cannot be added later.

    Raises StepFailed with the daemon's words, for example when somebody else has one open; nothing runs then.
    """
    since = log_size(place.reader.log)
    with listening_socket(place.reader_socket) as listener:
        spawn(place.reader, _words(place, disks, keys, monitor_fd=listener.fileno()), pass_fds=(listener.fileno(),))
    try:
        async with AsyncExitStack() as conversation:
            try:
                monitor = await conversation.enter_async_context(open_monitor(place.reader_socket))
            except HaulierError as error:
                words = last_words(place.reader.log, since=since) or error.problem.message
                raise StepFailed(
                    "reader_not_started", f"the disks cannot be opened: {words}", "Who has them?"
                ) from error
            yield monitor
        # In order: the bitmaps are written when the images are closed.
        await asyncio.to_thread(end_in_order, place.reader, patience_s=_CLOSE_S)
    finally:
        stop_reader(place)


def _words(place: VmPlace, disks: Sequence[ReadDisk], keys: KeyFolder | None, *, monitor_fd: int) -> list[str]:
    words = ["qemu-storage-daemon", "--pidfile", str(place.reader.pid_file)]
    words += ["--chardev", f"socket,id=monitor,fd={monitor_fd},server=on,wait=off", "--monitor", "chardev=monitor"]
    if keys:
        words += ["--object", keys.as_option(server=False)]
    for disk in disks:
        for node in file_nodes(disk.image, node_name=node_name(disk.device), read_only=False):
            words += ["--blockdev", node]
    return words


def stop_reader(place: VmPlace) -> None:
    """Make sure that no reader of this VM runs here; its bitmaps are in the images then. Safe to call twice."""
    end(place.reader)
