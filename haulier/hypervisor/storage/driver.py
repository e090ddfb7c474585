"""The face of a storage: what can be asked and done, whatever its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from haulier.definition.storage import StoragePlace
from haulier.errors import HaulierError, Problem, Refused, StepFailed
from haulier.hypervisor.images import fill_image

# What LVM allows; files may be longer.
_LONGEST_NAME = 127


class StorageDriver(ABC):
    """Every act may be repeated, and is whole or not at all as far as `exists` tells."""

    def __init__(self, place: StoragePlace) -> None:
        self.place = place

    def problem(self) -> Problem | None:
        """Why the storage cannot be used as it is; None if it can."""
        return None

    @abstractmethod
    def problem_of(self, path: Path) -> Problem | None:
        """What is wrong with a volume's path here; None if it is one. The volume need not exist."""

    @abstractmethod
    def problem_of_new(self, path: Path, *, size_bytes: int) -> Problem | None:
        """Why a volume of this size cannot be made there, as far as that can be seen; None if it can."""

    @abstractmethod
    def exists(self, path: Path) -> bool:
        """Whether the volume is there; one that is can be opened when this has said so."""

    def has_other_name(self, path: Path) -> bool:
        """Whether a volume that is there is another one's file, too; no device is."""
        del path
        return False

    @abstractmethod
    def make(self, path: Path, *, format: str, size_bytes: int) -> None:
        """Make a volume at least that large, that can be opened.

        Raises StepFailed, `volume_exists` for one that is there already; nothing was made then.
        """

    def make_blank(self, path: Path, *, format: str, size_bytes: int, content: Path | None = None) -> None:
        """Make a volume that reads as zeroes, with what is in the file `content` at its front.

        It has another name until it is that: whoever dies here leaves none of its own. Raises as `make`.
        """
        if problem := self.problem_of_new(path, size_bytes=size_bytes):
            raise StepFailed(problem.code, problem.message, problem.hint)
        unfinished = path.with_name(f"unfinished-{path.name}"[:_LONGEST_NAME])
        self.remove(unfinished)
        self.make(unfinished, format=format, size_bytes=size_bytes)
        try:
            self.blank(unfinished, size_bytes=size_bytes)
            if content:
                fill_image(self.place.image(unfinished, format, size_bytes), content=content)
        except StepFailed:
            self.remove(unfinished)
            raise
        self.put_away(unfinished, path)

    @abstractmethod
    def blank(self, path: Path, *, size_bytes: int) -> None:
        """Have a volume that was just made read as zeroes, where it does not by nature."""

    @abstractmethod
    def require_unused(self, path: Path) -> None:
        """Raise Refused while the host itself has a volume that is there in use: mounted, or a part of something."""

    @abstractmethod
    def remove(self, path: Path) -> None:
        """Remove a volume. Safe to call twice."""

    @abstractmethod
    def destroy(self, path: Path) -> None:
        """Overwrite and remove a volume that held secrets. Safe to call twice.

        (A storage that copies on write may keep the old bytes.)
        """

    @abstractmethod
    def put_away(self, path: Path, away: Path) -> None:
        """Give a volume another name on the same storage. Safe to call twice."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """The room that is left; None where volumes are not made."""

    @abstractmethod
    def identity(self, path: Path) -> str:
        """What the volume itself is called, by whatever path: equal on two nodes that see the same one."""

    def require_usable(self) -> None:
        """Raise Refused where the storage cannot be used as it is."""
        if problem := self.problem():
            raise Refused(problem.code, problem.message, problem.hint)

    def require(self, path: Path, *, error: type[HaulierError] = Refused) -> None:
        """Raise `error` unless the path is that of a volume of this storage."""
        if problem := self.problem_of(path):
            raise error(problem.code, problem.message, problem.hint)
