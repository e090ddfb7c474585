"""Where no bitmap says what the replica of a disk lacks, and nobody writes the disk, both are read and compared.

Each node reads its own side. What crosses the link is the digests of the target's, by the carrier, and then what
differs, as if a bitmap had said so.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import structlog

from haulier.definition.storage import Image
from haulier.errors import StepFailed
from haulier.fault_points import fault_point
from haulier.hypervisor.carrier import CarrierExport, RemoteExport, fetch_file
from haulier.hypervisor.differences import marking
from haulier.hypervisor.digests import digests_bytes, read_digests, write_digests
from haulier.hypervisor.images import image_info
from haulier.hypervisor.monitor import Monitor
from haulier.hypervisor.nbd import NbdServer, require_answer
from haulier.services.attempts import AttemptView, TransferView
from models import Phase, Side, TransferMethod
from tasks.backups import bitmap_of
from tasks.runner import Notes, StepRun

log = structlog.get_logger()
_KEY, _READ = "digest_key", "digested"
_KEY_BYTES = 32


def without_bitmap(view: AttemptView) -> Iterator[str]:
    """On the source, when it is checked: the devices that are to be compared, of a VM that does not run."""
    if not view.offline:
        return
    for disk in view.by_method(TransferMethod.DELTA):
        bitmaps = image_info(disk.source_path, format=disk.format).bitmaps
        if disk.replica and bitmap_of(disk) not in bitmaps:
            yield disk.device


async def read_replicas(work: StepRun) -> tuple[list[CarrierExport], Notes]:
    """On the target: write down what the replicas hold. Returns what the source reads of the carrier, and notes for it.

    A replica of which that cannot be written is not compared: all of the disk is sent then.
    """
    # Of no worth without the digests, which go before the attempt is over.
    key, exports = secrets.token_bytes(_KEY_BYTES), []
    for disk in work.view.compared:
        path, meter = work.place.digests(disk.export), work.meter(f"{disk.device}.compared", disk.size_bytes)
        try:
            await write_digests(disk.target_image, path, size_bytes=disk.size_bytes, key=key, report=meter)
        except (StepFailed, OSError) as error:
            log.warning("replica.not_read", device=disk.device, reason=str(error))
            path.unlink(missing_ok=True)
        else:
            exports.append(CarrierExport(_export(disk), Image(path), writable=False))
        await fault_point("comparing.read")
    return exports, {_KEY: key.hex(), _READ: [export.name for export in exports]}


async def mark_what_differs(work: StepRun, monitor: Monitor) -> None:
    """On the source, with the reader at work: give each disk that has no bitmap one that says where it differs.

    Raises StepFailed with the words of who failed; what is there of it goes with the reader, and by `undo`.
    """
    view, noted = work.view, work.view.notes[Phase.RESERVE, Side.TARGET]
    for disk in view.compared:
        if _export(disk) not in noted[_READ]:
            continue
        server = NbdServer(view.target.address, noted["carrier_port"])
        await require_answer(server)
        theirs = work.place.digests(disk.export)
        async with work.allowance.copying() as at_most:
            await fetch_file(
                RemoteExport(server, _export(disk), work.keys()),
                theirs,
                max_bytes_per_s=at_most,
                report=work.meter(f"{disk.device}.digests", digests_bytes(disk.size_bytes)),
            )
        await fault_point("comparing.fetched")
        await _mark(work, monitor, disk, theirs, key=bytes.fromhex(noted[_KEY]))
        theirs.unlink()
        await fault_point("comparing.marked")


async def _mark(work: StepRun, monitor: Monitor, disk: TransferView, theirs: Path, *, key: bytes) -> None:
    meter, size_bytes = work.meter(f"{disk.device}.compared", disk.size_bytes), disk.size_bytes
    with theirs.open("rb") as file:
        async with marking(monitor, disk.device, size_bytes=size_bytes, socket=work.place.marks_socket) as marks:
            async for blocks in read_digests(disk.source_image, size_bytes=size_bytes, key=key):
                await marks.add(blocks.differing(file.read(len(blocks.digests)), size_bytes=size_bytes))
                meter(blocks.end)


def _export(disk: TransferView) -> str:
    return f"digests{disk.volume_id}"
