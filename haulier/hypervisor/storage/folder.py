"""Volumes as image files in a folder, which may be in a file system that must be mounted first."""

from __future__ import annotations

from pathlib import Path

from haulier.definition.storage import StorageKind
from haulier.errors import Problem
from haulier.hypervisor.images import VOLUME_EXISTS, create_image, destroy_image, free_bytes, remove_image
from haulier.hypervisor.storage.driver import StorageDriver
from haulier.hypervisor.volume_paths import problem_of_path


class FolderDriver(StorageDriver):
    """A file is as large as its format needs, and reads as zeroes where nothing was written."""

    def problem(self) -> Problem | None:
        """Without its file system, the folder is another one."""
        mount = self.place.folder.parent
        if self.place.kind is not StorageKind.MOUNT or mount.is_mount():
            return None
        return Problem("storage_not_mounted", f"nothing is mounted on {mount}", "Mount it, or look at /proc/mounts.")

    def problem_of(self, path: Path) -> Problem | None:
        return problem_of_path(path, self.place.folder)

    def problem_of_new(self, path: Path, *, size_bytes: int) -> Problem | None:
        del size_bytes
        if not path.exists():
            return None
        return Problem(VOLUME_EXISTS, f"{path} is there already", "Nothing is overwritten; look whose it is.")

    def exists(self, path: Path) -> bool:
        return path.exists()

    def has_other_name(self, path: Path) -> bool:
        return path.exists() and path.stat().st_nlink > 1

    def make(self, path: Path, *, format: str, size_bytes: int) -> None:
        create_image(path, format=format, size_bytes=size_bytes)

    def make_blank(self, path: Path, *, format: str, size_bytes: int, content: Path | None = None) -> None:
        """A file is made blank in one go, and never over another one."""
        if content is None:
            self.make(path, format=format, size_bytes=size_bytes)
        else:
            super().make_blank(path, format=format, size_bytes=size_bytes, content=content)

    def blank(self, path: Path, *, size_bytes: int) -> None:
        """It is that by nature."""

    def require_unused(self, path: Path) -> None:
        """The host uses no image files."""

    def remove(self, path: Path) -> None:
        remove_image(path)

    def destroy(self, path: Path) -> None:
        destroy_image(path)

    def put_away(self, path: Path, away: Path) -> None:
        if path.exists():
            path.rename(away)

    def free_bytes(self) -> int | None:
        return free_bytes(self.place.folder)

    def identity(self, path: Path) -> str:
        """Also NFS and cluster file systems tell every host the same number."""
        found = path.stat()
        return f"{found.st_ino}"
