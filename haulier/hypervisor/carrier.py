"""The carrier: a storage daemon on the target that receives volumes which no QEMU has open, over the same TLS as every
other byte; and how its senders write to it.
"""

from __future__ import annotations

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
from haulier.hypervisor.tools import Done, run_beside

# For what a daemon has in memory, to a slow disk.
_FLUSH_S = 120.0


@dataclass(frozen=True, slots=True)
class CarrierExport:
    """One image that the carrier receives: the export's name, and where it is put.

    A file that is sent as it is, is received as it is, as a raw one. Of others the senders know the content alone. One
    that is not `writable` is for the other side to read.
    """

    name: str
    image: Image
    writable: bool = True


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
        served = f"type=nbd,id={export.name},node-name=node-{export.name},name={export.name}"
        words += ["--export", f"{served},writable={'on' if export.writable else 'off'}"]
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
    words = ["-n", "--target-image-opts", *(["--target-is-zero"] if onto_zeroes else [])]
    # qemu-img's own progress comes in steps of a hundredth of the image, which may be minutes apart.
    done = await _convert(
        [*words, as_name(image), _address(to)],
        keys=to.keys,
        max_bytes_per_s=max_bytes_per_s,
        watch=_meter("rchar", report),
    )
    if done.status != 0:
        said = f"{image.path.name} could not be copied: {done.words}"
        raise StepFailed("copy_failed", said, "Look at both nodes.")


async def fetch_file(
    source: RemoteExport, to: Path, *, report: Callable[[int], None], max_bytes_per_s: int = 0
) -> None:
    """Read a carrier's export into a file; as fast as it goes, or at most that fast. What was in the file is gone.

    `report` is told now and then how many bytes were written. Raises StepFailed with qemu-img's words.
    """
    done = await _convert(
        ["-O", "raw", "--image-opts", _address(source), os.fspath(to)],
        keys=source.keys,
        max_bytes_per_s=max_bytes_per_s,
        watch=_meter("wchar", report),
    )
    if done.status != 0:
        raise StepFailed("copy_failed", f"{source.export} could not be read: {done.words}", "Look at both nodes.")


async def _convert(
    words: Sequence[str], *, keys: KeyFolder | None, max_bytes_per_s: int, watch: Callable[[int], None]
) -> Done:
    limit = ["-r", str(max_bytes_per_s)] if max_bytes_per_s else []
    return await run_beside(["qemu-img", "convert", *_secret(keys), *limit, *words], watch=watch)


def _secret(keys: KeyFolder | None) -> list[str]:
    return ["--object", keys.as_option(server=False)] if keys else []


def flush_export(to: RemoteExport) -> None:
    """Have a carrier write to its disk what it has received of an export. Raises StepFailed with qemu-io's words."""
    words = ["qemu-io", *_secret(to.keys), "--image-opts", _address(to), "-c", "flush"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_FLUSH_S, check=False)
    if done.returncode != 0:
        said = " ".join(f"{done.stdout} {done.stderr}".split())
        raise StepFailed("not_flushed", f"what was received cannot be written: {said}", "Is the storage full?")


def _address(to: RemoteExport) -> str:
    target = f"driver=nbd,server.type=inet,server.host={to.server.address},server.port={to.server.port}"
    target += f",export={to.export}"
    return f"{target},tls-creds={OBJECT_ID}" if to.keys else target


def _meter(what: str, report: Callable[[int], None]) -> Callable[[int], None]:
    """Report how many bytes a process has read (`rchar`) or written (`wchar`) so far, as long as it runs."""

    def look(pid: int) -> None:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/io").read_text().splitlines()
            report(int(dict(line.split(": ") for line in lines)[what]))

    return look
