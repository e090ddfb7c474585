"""What `check` looks at in the files of a migration's volumes, on either side. Nothing is touched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from haulier.definition.storage import StoragePlace
from haulier.errors import Problem
from haulier.hypervisor.images import image_info
from haulier.hypervisor.storage import StorageDriver, driver_of
from haulier.services.attempts import AttemptView, TransferView
from models import Phase, Side, TransferMethod, VolumeRole
from tasks.comparing import without_bitmap
from tasks.runner import Notes


def source_problems(view: AttemptView) -> Iterator[Problem]:
    """What stands in the way of the volumes on the source."""
    by_identity: dict[str, str] = {}
    unusable = _unusable(volume.source_at for volume in view.transfers)
    yield from unusable.values()
    for volume in view.transfers:
        driver = driver_of(volume.source_at)
        if volume.source_at in unusable:
            continue
        if problem := driver.problem_of(volume.source_path):
            yield problem
        elif not driver.exists(volume.source_path):
            yield Problem("volume_missing", f"{volume.device}: {volume.source_path} is not there", "Where is it?")
        elif volume.stays:
            continue
        elif (other := by_identity.setdefault(_identity(volume), volume.device)) != volume.device:
            words = f"{volume.device} and {other} are one file under two names"
            yield Problem("one_file_two_names", words, "Two copies of it would go on as two disks.")
        elif volume.role is not VolumeRole.TPMSTATE:
            yield from _image_problems(volume, sync=view.replication_id is not None)


def _unusable(places: Iterable[StoragePlace]) -> dict[StoragePlace, Problem]:
    """Those of these storages that cannot be used as they are, with the reasons."""
    return {place: problem for place in dict.fromkeys(places) if (problem := driver_of(place).problem())}


def _identity(volume: TransferView) -> str:
    """Of a volume that is there: equal for two that are one."""
    number = volume.source_path.stat()
    return f"{number.st_dev} {number.st_ino}" if volume.source_at.facts.has_files else f"device {number.st_rdev}"


def _image_problems(volume: TransferView, *, sync: bool) -> Iterator[Problem]:
    found = image_info(volume.source_path, format=volume.format)
    if found.backing:
        yield Problem(
            "volume_is_clone", f"{volume.device} hangs on {found.backing}, which stays here", "Flatten it first."
        )
    if found.data_file:
        words = f"{volume.device} has its content in another file, {found.data_file}"
        yield Problem("volume_has_data_file", words, "Make one of both: qemu-img convert.")
    # A replica holds the disk as its guest sees it: that it has no snapshots is written in docs/replication.md.
    if found.snapshots and not (volume.goes_as_file or sync):
        yield _loses_snapshots(volume)
    is_whole = volume.source_at.facts.has_files
    if found.size_bytes != volume.size_bytes and (is_whole or found.size_bytes < volume.size_bytes):
        yield Problem(
            "size_differs",
            f"{volume.device} has {found.size_bytes} bytes, the database says {volume.size_bytes}",
            "Define the VM again with the right size.",
        )


def _loses_snapshots(volume: TransferView) -> Problem:
    words = f"{volume.device} has internal snapshots, which a {volume.method} "
    if volume.format != volume.target_format:
        words += f"to {volume.target_format} would lose"
        return Problem("internal_snapshots", words, "Delete them, or map its storage to a folder.")
    if volume.method is TransferMethod.DELTA:
        hint = "Delete them, or end its replication and migrate it with --offline."
        return Problem("internal_snapshots", f"{words}would lose", hint)
    return Problem("internal_snapshots", f"{words}would lose", "Stop the VM and migrate it with --offline.")


def seen_files(view: AttemptView) -> Notes:
    """For later phases: how long the files are that will be copied, which files they are that both nodes share, which
    disks are to be compared with their replicas, and which files look as they did when their replica was made.
    """
    copied = [volume for volume in view.by_method(TransferMethod.COPY) if volume.source_at.facts.has_files]
    looks = {volume.device: looks_of(volume.source_path) for volume in copied}
    return {
        "file_bytes": {device: look["bytes"] for device, look in looks.items()},
        "inodes": {each.device: driver_of(each.source_at).identity(each.source_path) for each in view.transfers},
        "looks": looks,
        "compared": list(without_bitmap(view)),
        "unchanged": [each.device for each in copied if _looks_the_same(each, looks)],
    }


def _looks_the_same(volume: TransferView, looks: dict[str, dict[str, int]]) -> bool:
    return volume.replica is not None and volume.replica.seen == looks[volume.device]


def looks_of(path: Path) -> dict[str, int]:
    """By what a file that was written to is told from the one it was."""
    found = path.stat()
    return {"bytes": found.st_size, "inode": found.st_ino, "changed_ns": found.st_mtime_ns}


def target_problems(view: AttemptView) -> Iterator[Problem]:
    """What stands in the way on the target: paths that lead astray, volumes that cannot be made, and a shared storage
    that is none.
    """
    identities = view.notes[Phase.CHECK, Side.SOURCE]["inodes"]
    unusable = _unusable(volume.target_at for volume in view.transfers)
    yield from unusable.values()
    for volume in view.transfers:
        driver = driver_of(volume.target_at)
        if volume.target_at in unusable:
            continue
        if problem := driver.problem_of(volume.target_path):
            yield problem
        elif volume in view.crossing:
            yield from _unmakable(volume, driver, identities[volume.device])
        elif volume.stays and not _is_same(volume, driver, identities[volume.device]):
            words = f"{volume.device}: {volume.target_path} is not the same file on {view.target.name}"
            yield Problem("not_shared", words, f"Is the storage {volume.target_storage} mounted there?")


def _unmakable(volume: TransferView, driver: StorageDriver, identity: str) -> Iterator[Problem]:
    if volume.target_at.facts.has_files and _is_same(volume, driver, identity):
        words = f"{volume.device}: {volume.target_path} seems to be one file that both nodes see"
        yield Problem("seems_shared", words, "Say so: shared 1, in the storage.cfg of both. Do not move it away.")
        return
    paths = [volume.target_path]
    if volume.base_path and volume.replica is None:
        paths.append(volume.base_path)
    for path in paths:
        if problem := driver.problem_of_new(path, size_bytes=volume.size_bytes):
            yield problem


def _is_same(volume: TransferView, driver: StorageDriver, identity: str) -> bool:
    return driver.exists(volume.target_path) and driver.identity(volume.target_path) == identity
