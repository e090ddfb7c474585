"""Image files: made, measured and sent with QEMU's own tools; nothing here knows what a volume is for.

A volume that no QEMU has open yet is received by a `qemu-storage-daemon` (the carrier), over the same TLS as every
other byte.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from haulier.definition.storage import Image
from haulier.errors import OutcomeUnknown, StepFailed
from haulier.hypervisor.image import as_name, layer, protocol
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.processes import end, end_in_order
from haulier.hypervisor.tls import OBJECT_ID, KeyFolder

VOLUME_EXISTS = "volume_exists"
_REPORT_S = 0.5
# For what a daemon has in memory, to a slow disk.
_FLUSH_S = 120.0


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What `qemu-img info` says: sizes in bytes; `backing` is the base an overlay hangs on."""

    format: str
    size_bytes: int
    used_bytes: int
    backing: str | None
    snapshots: int


@dataclass(frozen=True, slots=True)
class NbdServer:
    """Where a server listens."""

    address: str
    port: int


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


def create_image(path: Path, *, format: str, size_bytes: int) -> None:
    """Make an image that is not there yet, 0600. Raises StepFailed if it exists or cannot be made;
    then nothing is left of it.
    """
    _create(path, "-f", format, os.fspath(path), str(size_bytes))


def create_overlay(path: Path, *, base: Path, base_format: str) -> None:
    """Make a qcow2 over a base, which is as the overlay says from now on and must not change under it.

    Raises as `create_image`.
    """
    _create(path, "-f", "qcow2", "-b", os.fspath(base), "-F", base_format, os.fspath(path))


def _create(path: Path, *words: str) -> None:
    folder_was_there = path.parent.is_dir()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        if isinstance(error, FileExistsError) and path.parent.is_dir():
            raise StepFailed(
                VOLUME_EXISTS, f"{path} is there already", "Nothing is overwritten; move it away."
            ) from error
        raise StepFailed(
            "volume_not_made", f"{path} cannot be made: {error.strerror}", "Look at the storage."
        ) from error
    try:
        _qemu_img("create", "-q", *words)
    except StepFailed:
        path.unlink(missing_ok=True)
        if not folder_was_there:
            with suppress(OSError):  # somebody else has put something there
                path.parent.rmdir()
        raise


async def merge_overlay(path: Path) -> None:
    """Write what an overlay holds into its base. The overlay still covers all that is new when it fails or is killed,
    so that it can be done again. Raises StepFailed with qemu-img's words.
    """
    # `-d`: emptying the overlay would uncover the base; whoever is done removes it.
    words = ("qemu-img", "commit", "-q", "-d", "-f", "qcow2", os.fspath(path))
    process = await asyncio.create_subprocess_exec(
        *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = await _end_of(process)
    if process.returncode != 0:
        raise StepFailed("merge_failed", f"{path.name} could not be merged: {said}", "Is the storage full?")


async def _end_of(process: asyncio.subprocess.Process) -> str:
    """Wait for the end of a program, and kill it if we are told to end before. Returns what it said."""
    try:
        said, _ = await process.communicate()
        return said.decode(errors="replace").strip()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def flush(path: Path) -> None:
    """Have a file on the disk for certain, with its name. Raises StepFailed."""
    _fsync(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk for certain. Raises StepFailed."""
    _fsync(folder)


def _fsync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise StepFailed("not_flushed", f"{path} cannot be flushed: {error.strerror}", "Is the disk broken?") from error


def fill_image(image: Image, *, content: Path) -> None:
    """Write what is in a file to the front of an image that is as large or larger. Raises StepFailed."""
    _qemu_img("convert", "-n", "-O", image.format, as_name(Image(content)), as_name(image))


def remove_image(path: Path) -> None:
    """Remove an image. Safe to call twice."""
    path.unlink(missing_ok=True)


def copy_state(path: Path, to: Path, *, length: int = -1) -> None:
    """Copy a small file that holds secrets, 0600, or the front of a device. What was at `to` is replaced.

    Safe to call twice.
    """
    handle = os.open(to, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file, path.open("rb") as content:
        file.write(content.read(length))
    flush(to)


def destroy_image(path: Path) -> None:
    """Overwrite and remove a file that held secrets. Safe to call twice, and on a storage that is full.

    (A storage that copies on write may keep the old bytes.)
    """
    try:
        # Never through a link: what it leads to is not ours to overwrite.
        with os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+b") as file:
            for start, end in tuple(_extents(file.fileno())):
                file.seek(start)
                for at in range(start, end, 1 << 20):
                    file.write(bytes(min(1 << 20, end - at)))
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return
    path.unlink(missing_ok=True)


def _extents(file: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that hold data: what is written there needs no room that the file has not got already."""
    end, size = 0, os.lseek(file, 0, os.SEEK_END)
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


def image_info(path: Path, *, format: str) -> ImageInfo:
    """Look at an image, also while QEMU has it open. Raises StepFailed when it is not of this format.

    The format is never guessed: what a guest writes to the front of a raw disk is not for us to believe.
    """
    found = json.loads(_qemu_img("info", "-U", "-f", format, "--output=json", os.fspath(path)))
    return ImageInfo(
        format=found["format"],
        size_bytes=found["virtual-size"],
        used_bytes=found.get("actual-size", 0),
        backing=found.get("full-backing-filename"),
        snapshots=len(found.get("snapshots", ())),
    )


def free_bytes(folder: Path) -> int:
    """Free room of the file system under a folder that need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


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


def _qemu_img(*words: str) -> str:
    try:
        done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired as error:
        raise OutcomeUnknown("qemu_img_silent", f"qemu-img {words[0]} did not end") from error
    if done.returncode != 0:
        raise StepFailed("qemu_img_failed", done.stderr.strip().replace("\n", " "), f"qemu-img {words[0]}")
    return done.stdout
