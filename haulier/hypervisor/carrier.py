"""The carrier: a storage daemon on the target that receives volumes which no QEMU has open, over the same TLS as every
other byte; and how its senders write to it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from haulier.definition.storage import Image
from haulier.errors import StepFailed
from haulier.hypervisor.image import as_name, layer, protocol
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.processes import end, end_in_order
from haulier.hypervisor.tls import OBJECT_ID, KeyFolder

_REPORT_S = 0.5
# For what a daemon has in memory, to a slow disk.
_FLUSH_S = 120.0


@dataclass(frozen=True, slots=True)
class CarrierExport:
    """One image that the carrier receives: the export's name, and where it is put.

    A file that is sent as it is, is received as it is, as a raw one. Of others the senders know the content alone.
    """

    name: str
    image: Image


@dataclass(frozen=True, slots=True)
class RemoteExport:
    """One export of a carrier as its sender sees it; without `keys` it is not encrypted."""

    server: NbdServer
    export: str
    keys: KeyFolder | None


def start_carrier(
    place: VmPlace, exports: Sequence[CarrierExport], *, server: NbdServer, keys: KeyFolder | None
) -> None:
    """Receive volumes on this node until `stop_carrier`. When it returns, the server listens.

    Raises StepFailed with the daemon's words, for example when the port is taken; nothing runs then.
    """
    words = ["qemu-storage-daemon"]
    listen = f"addr.type=inet,addr.host={server.address},addr.port={server.port}"
    if keys:
        words += ["--object", keys.as_option(server=True)]
        listen += f",tls-creds={OBJECT_ID}"
    words += ["--nbd-server", listen]
    for export in exports:
        file = {**protocol(export.image), "discard": "unmap"}
        node = {**layer(export.image), "node-name": f"node-{export.name}", "file": file, "discard": "unmap"}
        words += ["--blockdev", json.dumps(node)]
        words += ["--export", f"type=nbd,id={export.name},node-name=node-{export.name},name={export.name},writable=on"]
    words += ["--pidfile", os.fspath(place.carrier.pid_file), "--daemonize"]
    started = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    if started.returncode != 0:
        raise StepFailed("carrier_not_started", " ".join(started.stderr.split())[-300:], "Is the port range free?")


def require_carrier(place: VmPlace) -> None:
    """Raise StepFailed `carrier_gone` when it has ended: what it had in memory is lost then."""
    if place.carrier.pid() is None:
        raise StepFailed("carrier_gone", "the carrier ended before all was written", "See its host's log.")


def close_carrier(place: VmPlace) -> None:
    """End a carrier that has received all there is, and is to write what it still has in memory.

    Raises StepFailed when it is not there any more, or does not end: what it has received is worth nothing then.
    """
    require_carrier(place)
    end_in_order(place.carrier, patience_s=_FLUSH_S)


def stop_carrier(place: VmPlace) -> None:
    """Make sure that no carrier of this VM runs here. Safe to call twice."""
    end(place.carrier)


async def send_file(
    image: Image,
    to: RemoteExport,
    *,
    report: Callable[[int], None],
    max_bytes_per_s: int = 0,
    onto_zeroes: bool = True,
) -> None:
    """Copy an image's content into a carrier's export and flush it there; as fast as it goes, or at most that fast.

    `onto_zeroes` says that the export reads as zeroes: what is zero is not sent then, and holes stay holes. `report` is
    told now and then how many bytes were read. Raises StepFailed when the copy failed; the target then holds some of it
    and is to be written again or freed.
    """
    words, target = ["qemu-img", "convert", "-n", "--target-image-opts"], _address(to)
    if onto_zeroes:
        words.append("--target-is-zero")
    if to.keys:
        words += ["--object", to.keys.as_option(server=False)]
    if max_bytes_per_s:
        words += ["-r", str(max_bytes_per_s)]
    process = await asyncio.create_subprocess_exec(
        *words, as_name(image), target, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    saying = asyncio.ensure_future(_end_of(process))
    try:
        while not saying.done():
            await asyncio.wait({saying}, timeout=_REPORT_S)
            if (done := _bytes_read(process.pid)) is not None:
                report(done)
        said = saying.result()
    finally:
        saying.cancel()
        with suppress(asyncio.CancelledError):
            await saying
    if process.returncode != 0:
        raise StepFailed(
            "copy_failed",
            f"{image.path.name} could not be copied: {said}",
            "Look at both nodes.",
        )


async def _end_of(process: asyncio.subprocess.Process) -> str:
    """Wait for the end of a program, and kill it if we are told to end before. Returns what it said."""
    try:
        said, _ = await process.communicate()
        return said.decode(errors="replace").strip()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def flush_export(to: RemoteExport) -> None:
    """Have a carrier write to its disk what it has received of an export. Raises StepFailed with qemu-io's words."""
    words, target = ["qemu-io"], _address(to)
    if to.keys:
        words += ["--object", to.keys.as_option(server=False)]
    done = subprocess.run(
        [*words, "--image-opts", target, "-c", "flush"], capture_output=True, text=True, timeout=_FLUSH_S, check=False
    )
    if done.returncode != 0:
        said = " ".join(f"{done.stdout} {done.stderr}".split())
        raise StepFailed("not_flushed", f"what was received cannot be written: {said}", "Is the storage full?")


def _address(to: RemoteExport) -> str:
    target = f"driver=nbd,server.type=inet,server.host={to.server.address},server.port={to.server.port}"
    target += f",export={to.export}"
    return f"{target},tls-creds={OBJECT_ID}" if to.keys else target


def _bytes_read(pid: int) -> int | None:
    """What a process has read so far; None once it has ended.

    qemu-img's own progress comes in steps of a hundredth of the image, which may be minutes apart.
    """
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return None
    return int(dict(line.split(": ") for line in lines)["rchar"])
