"""What an image holds, as a digest for each 64 KiB of it: by these two images on two nodes are compared, and nothing
but digests crosses the link for it.

Where in a file a block of the image lies is asked of `qemu-img map`; what that does not say (a compressed cluster) can
be neither read nor compared, and is taken for different; so is what the disk does not give.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from haulier.definition.storage import Image
from haulier.errors import StepFailed
from haulier.hypervisor.generations import GRANULARITY
from haulier.hypervisor.image import as_name
from haulier.hypervisor.images import image_info
from haulier.hypervisor.tools import run_beside

# Enough, because the guest does not know the key: it cannot make two blocks that look the same.
_DIGEST_BYTES = 16
_OF_ZEROES = bytes(_DIGEST_BYTES)
_UNREADABLE = b"\xff" * _DIGEST_BYTES
_NO_BYTES = bytes(GRANULARITY)
# So much is read before others have their turn.
_WINDOW_BYTES = 16 << 20
# So much is asked for at a time: less where the image is cut finely, because to read the answer keeps others waiting.
_MAP_BYTES, _MAP_MOST_BYTES = 128 << 20, 1 << 30
_MANY_EXTENTS = 512


@dataclass(frozen=True, slots=True)
class Blocks:
    """The digests of some blocks of an image, one after the other; the first is that at `start`, in bytes."""

    start: int
    digests: bytes

    @property
    def end(self) -> int:
        """Where the next ones begin, in bytes; behind the last ones it may be behind the image's end."""
        return self.start + len(self.digests) // _DIGEST_BYTES * GRANULARITY

    def differing(self, others: bytes, *, size_bytes: int) -> Iterator[tuple[int, int]]:
        """Where another image differs, by its digests of the same blocks: start and length in bytes, neighbours as one.

        `size_bytes` is that of the whole image: its last block may be short.
        """
        if self.digests == others and _UNREADABLE not in others:
            return
        begun: int | None = None
        for at in range(0, len(self.digests) + 1, _DIGEST_BYTES):
            ours, theirs = (each[at : at + _DIGEST_BYTES] for each in (self.digests, others))
            here = self.start + at // _DIGEST_BYTES * GRANULARITY
            if ours != theirs or ours == _UNREADABLE:
                begun = here if begun is None else begun
            elif begun is not None:
                yield begun, min(here, size_bytes) - begun
                begun = None


@dataclass(frozen=True, slots=True)
class _Extent:
    """A part of an image that does not read as zeroes: where it lies in its file, None if that is not known."""

    start: int
    length: int
    offset: int | None


def digests_bytes(size_bytes: int) -> int:
    """How long the digests of an image are."""
    return -(-size_bytes // GRANULARITY) * _DIGEST_BYTES


async def read_digests(image: Image, *, size_bytes: int, key: bytes) -> AsyncIterator[Blocks]:
    """The digests of an image that nobody writes to meanwhile, from its front to its end; what is zero is not read.

    Two of them are comparable under one `key` of at most 64 bytes. Raises StepFailed with qemu-img's words, or when the
    file cannot be opened.
    """
    info = await asyncio.to_thread(image_info, image.path, format=image.format)
    start, portion = 0, _MAP_BYTES
    with _opened(image.path) as file:
        while start < size_bytes:
            end = min(start + portion, size_bytes)
            extents = await _map(image, start=start, end=end, is_readable=info.data_file is None)
            for here in range(start, end, _WINDOW_BYTES):
                until = min(here + _WINDOW_BYTES, end)
                inside = [each for each in extents if each.start < until and here < each.start + each.length]
                digests = await asyncio.to_thread(_digests, file, inside, start=here, end=until, key=key)
                yield Blocks(here, digests)
            start, portion = end, _MAP_BYTES if len(extents) > _MANY_EXTENTS else min(2 * portion, _MAP_MOST_BYTES)


async def write_digests(image: Image, to: Path, *, size_bytes: int, key: bytes, report: Callable[[int], None]) -> None:
    """Write the digests of an image into a file, which has holes where the image has; `report` is told how far in the
    image it is, in bytes. Raises as `read_digests`, or OSError when the file cannot be written.
    """
    with os.fdopen(os.open(to, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        async for blocks in read_digests(image, size_bytes=size_bytes, key=key):
            if blocks.digests.strip(b"\0"):
                file.write(blocks.digests)
            else:
                file.seek(len(blocks.digests), os.SEEK_CUR)
            report(blocks.end)
        file.truncate(digests_bytes(size_bytes))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StepFailed("volume_unreadable", f"{path} cannot be read: {error.strerror}", "Is it there?") from error
    try:
        yield file
    finally:
        os.close(file)


async def _map(image: Image, *, start: int, end: int, is_readable: bool) -> list[_Extent]:
    words = ["qemu-img", "map", "-U", "--output=json", f"--start-offset={start}", f"--max-length={end - start}"]
    done = await run_beside([*words, as_name(image)])
    if done.status != 0:
        raise StepFailed("qemu_img_failed", f"{image.path} cannot be read: {done.words}", "qemu-img map")
    return [
        # An offset in a backing file, or in a data file, would be none of this file.
        _Extent(found["start"], found["length"], found.get("offset") if is_readable and not found["depth"] else None)
        for found in json.loads(done.stdout)
        if not found["zero"]
    ]


def _digests(file: int, extents: Sequence[_Extent], *, start: int, end: int, key: bytes) -> bytes:
    count = -(-(end - start) // GRANULARITY)
    if not extents:
        return _OF_ZEROES * count
    content, unreadable = bytearray(end - start), set[int]()
    for each in extents:
        first, last = max(each.start, start), min(each.start + each.length, end)
        into = memoryview(content)[first - start : last - start]
        if each.offset is None or not _read(file, into, offset=each.offset + first - each.start):
            unreadable.update(range((first - start) // GRANULARITY, -(-(last - start) // GRANULARITY)))
    blocks = (bytes(content[at : at + GRANULARITY]) for at in range(0, end - start, GRANULARITY))
    return b"".join(_UNREADABLE if number in unreadable else _digest(block, key) for number, block in enumerate(blocks))


def _digest(block: bytes, key: bytes) -> bytes:
    if block == _NO_BYTES[: len(block)]:
        return _OF_ZEROES
    return hashlib.blake2b(block, digest_size=_DIGEST_BYTES, key=key).digest()


def _read(file: int, into: memoryview, *, offset: int) -> bool:
    """Fill it from the file; what lies behind the file's end reads as zeroes. False if it cannot be read."""
    begin = offset
    try:
        while into and (length := os.preadv(file, [into], offset)):
            into, offset = into[length:], offset + length
    except OSError:
        return False
    # What is read once must not push out of memory what guests read again and again.
    os.posix_fadvise(file, begin, offset - begin, os.POSIX_FADV_DONTNEED)
    return True
