"""Files of fake hosts, behind as much of pathlib as the product uses: a path's first part names its host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import ClassVar, TypeVar

from haulier.fakes.effects import effect, look

# Who a TPM is that swtpm quietly made because it found a blank volume.
STRANGER = "stranger"


@dataclass(slots=True, eq=False)
class FakeVolume:
    """What a file holds: how many writes reached it and, if it is a TPM's state, whose (None: it is blank)."""

    written: int = 0
    identity: str | None = None

    def take(self, other: FakeVolume) -> None:
        """Hold what the other one holds now."""
        self.written, self.identity = other.written, other.identity

    def as_bytes(self) -> bytes:
        """A TPM's state as its reader gets it; empty if it is blank."""
        return f"{self.identity}:{self.written}".encode() if self.identity else b""

    @classmethod
    def from_bytes(cls, data: bytes) -> FakeVolume:
        identity, _, written = data.partition(b"\0")[0].decode().partition(":")
        return cls(int(written or 0), identity or None)


@dataclass(slots=True)
class FakeFiles:
    """One host's files: volumes and short texts."""

    contents: dict[FakePath, FakeVolume | str] = field(default_factory=dict)
    folders: set[FakePath] = field(default_factory=set)


_Path = TypeVar("_Path", bound="FakePath")


class FakePath(PurePosixPath):
    """A path on one of the hosts that are played with. There are no links."""

    __slots__ = ()
    disks: ClassVar[dict[str, FakeFiles]] = {}

    @property
    def disk(self) -> FakeFiles:
        return self.disks[self.parts[1]]

    def exists(self) -> bool:
        look()
        return self in self.disk.contents or self in self.disk.folders

    def is_dir(self) -> bool:
        return self in self.disk.folders

    def is_symlink(self) -> bool:
        return False

    def resolve(self: _Path) -> _Path:
        return self

    def chmod(self, mode: int) -> None:
        del mode

    def mkdir(self, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        del mode, parents, exist_ok
        if self not in self.disk.folders:
            effect()
            self.disk.folders.add(self)

    def stat(self) -> SimpleNamespace:
        look()
        return SimpleNamespace(
            st_size=1 << 20, st_dev=0, st_ino=id(self.disk.contents[self]), st_mtime_ns=0, st_nlink=1
        )

    def touch(self, mode: int = 0o666) -> None:
        del mode
        effect()
        self.disk.contents.setdefault(self, FakeVolume())

    def write_text(self, text: str) -> None:
        effect()
        self.disk.contents[self] = text

    def read_text(self) -> str:
        look()
        found = self.disk.contents.get(self)
        if not isinstance(found, str):
            raise FileNotFoundError(str(self))
        return found

    def write_bytes(self, data: bytes) -> None:
        """Bytes are a TPM's state."""
        effect()
        self.disk.contents[self] = FakeVolume.from_bytes(data)

    def volume(self) -> FakeVolume:
        """What lies here. Raises FileNotFoundError."""
        look()
        found = self.disk.contents.get(self)
        if not isinstance(found, FakeVolume):
            raise FileNotFoundError(str(self))
        return found

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Who has it open keeps what it holds."""
        if self in self.disk.contents:
            effect()
        if self.disk.contents.pop(self, None) is None and not missing_ok:
            raise FileNotFoundError(str(self))

    def rmdir(self) -> None:
        effect()
        self.disk.folders.discard(self)

    def rename(self, to: FakePath) -> None:
        effect()
        self.disk.contents[to] = self.disk.contents.pop(self)

    def rglob(self: _Path, pattern: str) -> Iterator[_Path]:
        del pattern
        look()
        found = [*self.disk.contents, *self.disk.folders]
        return iter([type(self)(path) for path in found if self in path.parents])

    def glob(self: _Path, pattern: str) -> Iterator[_Path]:
        return iter([path for path in self.rglob(pattern) if path.parent == self and path.match(pattern)])
