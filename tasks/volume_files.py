"""What `check` looks at in the files of a migration's volumes, on either side. Nothing is touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from haulier.errors import Problem
from haulier.hypervisor.images import image_info
from haulier.hypervisor.volume_paths import problem_of_mount, problem_of_path
from haulier.services.attempts import AttemptView, TransferView
from models import Phase, Side, TransferMethod, VolumeRole
from tasks.runner import Notes


def source_problems(view: AttemptView) -> Iterator[Problem]:
    """What stands in the way of the volumes on the source."""
    by_file: dict[tuple[int, int], str] = {}
    for volume in view.transfers:
        if problem := problem_of_path(volume.source_path, volume.source_folder):
            yield problem
        elif not volume.source_path.exists():
            yield Problem("volume_missing", f"{volume.device}: {volume.source_path} is not there", "Where is it?")
        elif volume.stays:
            continue
        elif (other := by_file.setdefault(_number(volume.source_path), volume.device)) != volume.device:
            words = f"{volume.device} and {other} are one file under two names"
            yield Problem("one_file_two_names", words, "Two copies of it would go on as two disks.")
        elif volume.role is not VolumeRole.TPMSTATE:
            yield from _image_problems(volume, sync=view.replication_id is not None)


def _image_problems(volume: TransferView, *, sync: bool) -> Iterator[Problem]:
    found = image_info(volume.source_path, format=volume.format)
    if found.backing:
        yield Problem(
            "volume_is_clone", f"{volume.device} hangs on {found.backing}, which stays here", "Flatten it first."
        )
    # A replica holds the disk as its guest sees it: that it has no snapshots is written in docs/replication.md.
    if found.snapshots and volume.method in (TransferMethod.MIRROR, TransferMethod.DELTA) and not sync:
        words = f"{volume.device} has internal snapshots, which a {volume.method} would lose"
        yield Problem("internal_snapshots", words, "Stop the VM and migrate it with --offline.")
    if found.size_bytes != volume.size_bytes:
        yield Problem(
            "size_differs",
            f"{volume.device} has {found.size_bytes} bytes, the database says {volume.size_bytes}",
            "Define the VM again with the right size.",
        )


def seen_files(view: AttemptView) -> Notes:
    """For later phases: how long the files are that will be copied, which files they are that both nodes share, and
    of a sync, which look as they did when their replica was made.
    """
    copied = view.by_method(TransferMethod.COPY)
    looks = {volume.device: _looks(volume.source_path) for volume in copied}
    return {
        "file_bytes": {device: look["bytes"] for device, look in looks.items()},
        "inodes": {volume.device: _number(volume.source_path)[1] for volume in view.staying},
        "looks": looks,
        "unchanged": [each.device for each in copied if view.replication_id and _looks_the_same(each, looks)],
    }


def _looks_the_same(volume: TransferView, looks: dict[str, dict[str, int]]) -> bool:
    return volume.replica is not None and volume.replica.seen == looks[volume.device]


def _looks(path: Path) -> dict[str, int]:
    """By what a file that was written to is told from the one it was."""
    found = path.stat()
    return {"bytes": found.st_size, "inode": found.st_ino, "changed_ns": found.st_mtime_ns}


def target_problems(view: AttemptView) -> Iterator[Problem]:
    """What stands in the way on the target: paths that lead astray, and a shared storage that is none."""
    inodes = view.notes[Phase.CHECK, Side.SOURCE]["inodes"]
    mounts = dict.fromkeys(volume.target_mount for volume in view.transfers)
    yield from (problem for mount in mounts if (problem := problem_of_mount(mount)))
    for volume in view.transfers:
        if problem := problem_of_path(volume.target_path, volume.target_folder):
            yield problem
        elif volume.stays and not _is_file(volume, inodes[volume.device]):
            words = f"{volume.device}: {volume.target_path} is not the same file on {view.target.name}"
            yield Problem("not_shared", words, f"Is the storage {volume.target_storage} mounted there?")


def _is_file(volume: TransferView, inode: int) -> bool:
    """Whether it is the file of that number: also NFS and cluster file systems tell the same one to every host."""
    return volume.target_path.exists() and _number(volume.target_path)[1] == inode


def _number(path: Path) -> tuple[int, int]:
    """What a file is called by its host's kernel, whatever its names: of its file system, and in that."""
    found = path.stat()
    return found.st_dev, found.st_ino
