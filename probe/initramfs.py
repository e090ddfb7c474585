"""Packs files into the archive that a Linux kernel unpacks as its first root. Knows nothing of what they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Entry", "write_initramfs"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One name in the archive with its mode as in `stat`, and what is in it: of a link, where it points to."""

    name: str
    mode: int
    content: bytes = b""

    @classmethod
    def folder(cls, name: str) -> Entry:
        return cls(name=name, mode=0o040755)

    @classmethod
    def link(cls, name: str, goal: str) -> Entry:
        return cls(name=name, mode=0o120777, content=goal.encode())

    @classmethod
    def file(cls, name: str, path: Path) -> Entry:
        return cls(name=name, mode=0o100644, content=path.read_bytes())

    @classmethod
    def program(cls, name: str, path: Path) -> Entry:
        return cls(name=name, mode=0o100755, content=path.read_bytes())


def write_initramfs(initrd: Path, entries: Iterable[Entry]) -> None:
    """Write the archive, which appears by a rename; a folder must come before what is in it.

    Not compressed: unpacking would cost the guest more than reading.
    """
    fresh = initrd.with_suffix(".new")
    fresh.write_bytes(b"".join(_cpio([*entries, Entry(name="TRAILER!!!", mode=0)])))
    fresh.replace(initrd)


def _cpio(entries: Iterable[Entry]) -> Iterator[bytes]:
    """Archive in the "newc" form: a header of 14 hex fields, the name, the content, each padded to 4 bytes."""
    for inode, entry in enumerate(entries, start=1):
        size = len(entry.content)
        fields = (inode, entry.mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(entry.name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % number for number in fields) + entry.name.encode() + b"\0"
        yield head + bytes(-len(head) % 4)
        yield entry.content + bytes(-size % 4)
