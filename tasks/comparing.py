"""Where no bitmap says what the replica of a disk lacks, and nobody writes the disk, both are read and compared.

Each node reads its own side. What crosses the link is the digests of the target's, by the carrier, and then what
differs, as if a bitmap had said so.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

from haulier.definition.storage import Image
from haulier.fault_points import fault_point
from haulier.hypervisor.carrier import CarrierExport, RemoteExport, fetch_file
from haulier.hypervisor.differences import Ranges, mark_differences
from haulier.hypervisor.digests import digests_bytes, read_digests, write_digests
from haulier.hypervisor.images import image_info
from haulier.hypervisor.monitor import Monitor
from haulier.hypervisor.nbd import NbdServer, require_answer
from haulier.services.attempts import AttemptView, TransferView
from models import Phase, Side, TransferMethod
from tasks.backups import bitmap_of
from tasks.runner import Notes, StepRun

_KEY = "digest_key"
_KEY_BYTES = 32


def without_bitmap(view: AttemptView) -> Iterator[str]:
    """On the source, when it is checked: the devices that are to be compared, of a VM that does not run."""
    if not view.offline:
        return
    for disk in view.by_method(TransferMethod.DELTA):
        bitmaps = image_info(disk.source_path, format=disk.format).bitmaps
        if disk.replica and bitmap_of(disk) not in bitmaps:
            yield disk.device


def compared_exports(work: StepRun) -> list[CarrierExport]:
    """On the target: what the source reads of the carrier, beside what it writes."""
    return [
        CarrierExport(_export(disk), Image(work.place.digests(disk.export)), writable=False)
        for disk in work.view.compared
    ]


async def read_replicas(work: StepRun) -> Notes:
    """On the target: write down what the replicas hold. Raises StepFailed when one cannot be read."""
    disks = work.view.compared
    if not disks:
        return {}
    key = secrets.token_bytes(_KEY_BYTES)
    for disk in disks:
        path, meter = work.place.digests(disk.export), work.meter(f"{disk.device}.compared", disk.size_bytes)
        await write_digests(disk.target_image, path, size_bytes=disk.size_bytes, key=key, report=meter)
        await fault_point("comparing.read")
    return {_KEY: key.hex()}


async def mark_what_differs(work: StepRun, monitor: Monitor) -> None:
    """On the source, with the reader at work: give each disk that has no bitmap one that says where it differs.

    Raises StepFailed with the words of who failed; what is there of it goes with the reader, and by `undo`.
    """
    view, noted = work.view, work.view.notes[Phase.RESERVE, Side.TARGET]
    for disk in view.compared:
        server = NbdServer(view.target.address, noted["carrier_port"])
        await require_answer(server)
        theirs = work.place.digests(disk.export)
        await fetch_file(
            RemoteExport(server, _export(disk), work.keys()),
            theirs,
            max_bytes_per_s=work.context.settings.max_bandwidth_bytes_per_s,
            report=work.meter(f"{disk.device}.digests", digests_bytes(disk.size_bytes)),
        )
        await fault_point("comparing.fetched")
        differing = await _differing(work, disk, theirs, key=bytes.fromhex(noted[_KEY]))
        theirs.unlink()
        socket = work.place.marks_socket
        await mark_differences(monitor, disk.device, differing, size_bytes=disk.size_bytes, socket=socket)
        await fault_point("comparing.marked")


async def _differing(work: StepRun, disk: TransferView, theirs: Path, *, key: bytes) -> Ranges:
    found: list[tuple[int, int]] = []
    meter = work.meter(f"{disk.device}.compared", disk.size_bytes)
    with theirs.open("rb") as file:
        async for blocks in read_digests(disk.source_image, size_bytes=disk.size_bytes, key=key):
            found += blocks.differing(file.read(len(blocks.digests)), size_bytes=disk.size_bytes)
            meter(blocks.end)
    return found


def _export(disk: TransferView) -> str:
    return f"digests{disk.volume_id}"
