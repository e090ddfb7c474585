"""Image files: made, measured and merged with QEMU's own tools; nothing here knows what a volume is for."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from haulier.definition.storage import Image
from haulier.errors import OutcomeUnknown, StepFailed
from haulier.hypervisor.image import as_name
from haulier.hypervisor.tools import run_beside

VOLUME_EXISTS = "volume_exists"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What `qemu-img info` says: sizes in bytes; `backing` is the base an overlay hangs on, `data_file` another file
    that has the content, `bitmaps` those in it that have missed nothing.
    """

    format: str
    size_bytes: int
    used_bytes: int
    backing: str | None
    snapshots: int
    data_file: str | None = None
    bitmaps: frozenset[str] = frozenset()


def create_image(path: Path, *, format: str, size_bytes: int) -> None:
    """Make an image that is not there yet, 0600. Raises StepFailed if it exists or cannot be made;
    then nothing is left of it.
    """
    _create(path, "-f", format, os.fspath(path), str(size_bytes))


def _is_there(path: Path) -> StepFailed:
    return StepFailed(VOLUME_EXISTS, f"{path} is there already", "Nothing is overwritten; look whose it is.")


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
            raise _is_there(path) from error
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


def link_image(path: Path, *, other: Path) -> bool:
    """Give a file that is there a second name, which is on the disk then; False where the file system has no such, or
    there is no such file. Raises StepFailed if the name is taken.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.hardlink_to(other)
    except FileExistsError as error:
        raise _is_there(path) from error
    except OSError:
        return False
    flush_folder(path.parent)
    return True


async def merge_overlay(path: Path) -> None:
    """Write what an overlay holds into its base. The overlay still covers all that is new when it fails or is killed,
    so that it can be done again. Raises StepFailed with qemu-img's words.
    """
    # `-d`: emptying the overlay would uncover the base; whoever is done removes it.
    done = await run_beside(("qemu-img", "commit", "-q", "-d", "-f", "qcow2", os.fspath(path)))
    if done.status != 0:
        raise StepFailed("merge_failed", f"{path.name} could not be merged: {done.words}", "Is the storage full?")


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
    special = found.get("format-specific", {}).get("data", {})
    return ImageInfo(
        format=found["format"],
        size_bytes=found["virtual-size"],
        used_bytes=found.get("actual-size", 0),
        backing=found.get("full-backing-filename"),
        snapshots=len(found.get("snapshots", ())),
        data_file=special.get("data-file"),
        bitmaps=frozenset(each["name"] for each in special.get("bitmaps", ()) if "in-use" not in each["flags"]),
    )


def free_bytes(folder: Path) -> int:
    """Free room of the file system under a folder that need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _qemu_img(*words: str) -> str:
    try:
        done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired as error:
        raise OutcomeUnknown("qemu_img_silent", f"qemu-img {words[0]} did not end") from error
    if done.returncode != 0:
        raise StepFailed("qemu_img_failed", done.stderr.strip().replace("\n", " "), f"qemu-img {words[0]}")
    return done.stdout
