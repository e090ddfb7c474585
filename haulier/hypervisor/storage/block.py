"""Devices that somebody else provides and that are there under their names: they are taken and given back, not made."""

from __future__ import annotations

import os
from pathlib import Path

from haulier.errors import Problem, StepFailed
from haulier.hypervisor.storage.devices import DeviceDriver, problem_of_use

# Where file systems, partitions and LVM have what they are known by; a device that is given back is none of those.
_FRONT_BYTES = 1 << 20


class BlockDriver(DeviceDriver):
    """A device may be larger than the volume on it; its end is nobody's then."""

    def problem(self) -> Problem | None:
        if self.place.folder.is_dir():
            return None
        return Problem("storage_missing", f"there is no folder {self.place.folder}", "It holds links to the devices.")

    def problem_of_new(self, path: Path, *, size_bytes: int) -> Problem | None:
        if not path.is_block_device():
            return Problem("device_missing", f"{path} is no device", "Provide one of that name; none is made.")
        there = _size_of(path)
        if there < size_bytes:
            words = f"{path} has {there} bytes, {size_bytes} are needed"
            return Problem("device_too_small", words, "Provide a larger one.")
        if problem := problem_of_use(path):
            return problem
        with path.open("rb") as device:
            front = device.read(_FRONT_BYTES)
        if front.strip(b"\0"):
            # It may be anybody's, also a VM's of another node that sees the same device.
            words = f"{path} is not empty: its first MiB is not zero"
            return Problem("device_not_empty", words, f"If it is nobody's: blkdiscard -z -l 1MiB {path}")
        return None

    def exists(self, path: Path) -> bool:
        return path.is_block_device()

    def make(self, path: Path, *, format: str, size_bytes: int) -> None:
        """Take it. Behind its front there is what was there before."""
        del format
        if problem := self.problem_of_new(path, size_bytes=size_bytes):
            raise StepFailed(problem.code, problem.message, problem.hint)

    def make_blank(self, path: Path, *, format: str, size_bytes: int, content: Path | None = None) -> None:
        """It is there, or it is not: nobody asks for one to be made."""
        raise StepFailed("device_missing", f"{path} is no device", "Provide one of that name; none is made.")

    def remove(self, path: Path) -> None:
        """Give it back: its front is overwritten, so that it is empty for whoever takes it next."""
        if self.exists(path):
            _require_free(path)
            self._zero(path, length=min(_FRONT_BYTES, _size_of(path)))

    def destroy(self, path: Path) -> None:
        if self.exists(path):
            _require_free(path)
            self._zero_secrets(path, there=_size_of(path))

    def put_away(self, path: Path, away: Path) -> None:
        """It keeps its name, so it is given back at once."""
        self.remove(path)

    def free_bytes(self) -> int | None:
        return None

    def identity(self, path: Path) -> str:
        return f"{os.major(path.stat().st_rdev)}:{os.minor(path.stat().st_rdev)}"


def _require_free(path: Path) -> None:
    if problem := problem_of_use(path):
        raise StepFailed(problem.code, problem.message, problem.hint)


def _size_of(path: Path) -> int:
    with path.open("rb") as device:
        return device.seek(0, os.SEEK_END)
