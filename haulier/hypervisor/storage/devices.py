"""What every kind of device has in common: its path, its size, zeroes."""

from __future__ import annotations

from pathlib import Path

from haulier.definition.storage import StoragePlace
from haulier.errors import Problem, StepFailed
from haulier.hypervisor.storage.driver import StorageDriver
from haulier.hypervisor.storage.tools import Run, run_tool

_SECTOR = 512


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

    def blank(self, path: Path, *, size_bytes: int) -> None:
        if not self.place.facts.is_zeroed:
            self._zero(path, length=size_bytes)

    def _zero(self, path: Path, *, length: int | None = None) -> None:
        """Overwrite the front of a device, or all of it. Raises StepFailed with the program's words."""
        some = ["--length", str(whole_sectors(length))] if length else []
        done = self._run(["blkdiscard", "--force", "--zeroout", *some, str(path)])
        if done.status != 0:
            raise StepFailed("not_overwritten", f"{path} was not overwritten: {done.words}", "Is it still open?")
