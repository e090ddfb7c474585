"""What every kind of device has in common: its path, its size, zeroes."""

from __future__ import annotations

import os
from pathlib import Path

from haulier.definition.storage import StoragePlace
from haulier.errors import Problem, Refused, StepFailed
from haulier.hypervisor.storage.driver import StorageDriver
from haulier.hypervisor.tools import Run, run_tool

_SECTOR = 512
# A TPM's state is at the front of its volume, and no volume of one is as large.
_SECRET_BYTES = 64 << 20


def problem_of_use(path: Path) -> Problem | None:
    """What the kernel has a device for: mounted, or a part of another; None if it is free for us."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        words = f"{path} cannot be had: {error.strerror}"
        return Problem("device_in_use", words, "Is it mounted, or part of another device?")
    return None


def whole_sectors(length: int) -> int:
    """A length in bytes, rounded up to what a device can have."""
    return -(-length // _SECTOR) * _SECTOR


class DeviceDriver(StorageDriver):
    """`run` is how programs are run."""

    def __init__(self, place: StoragePlace, *, run: Run = run_tool) -> None:
        super().__init__(place)
        self._run = run

    def problem_of(self, path: Path) -> Problem | None:
        """A device's path leads out of its folder by nature, as a link: its name alone is looked at."""
        if path.parent == self.place.folder and path.name not in ("", ".", ".."):
            return None
        words = f"{str(path)!r} is no volume of the storage {self.place.folder}"
        return Problem("volume_path_outside_storage", words, "Its volumes lie right below it.")

    def require_unused(self, path: Path) -> None:
        if problem := problem_of_use(path):
            raise Refused(problem.code, problem.message, problem.hint)

    def blank(self, path: Path, *, size_bytes: int) -> None:
        if not self.place.facts.is_zeroed:
            self._zero(path, length=size_bytes)

    def _zero_secrets(self, path: Path, *, there: int) -> None:
        """Overwrite what may hold a TPM's state of a device of that many bytes."""
        self._zero(path, length=min(_SECRET_BYTES, there))

    def _zero(self, path: Path, *, length: int) -> None:
        """Overwrite the front of a device. Raises StepFailed with the program's words."""
        size = str(whole_sectors(length))
        done = self._run(["blkdiscard", "--force", "--zeroout", "--length", size, str(path)])
        if done.status != 0:
            raise StepFailed("not_overwritten", f"{path} was not overwritten: {done.words}", "Is it still open?")
