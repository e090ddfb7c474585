"""Real images are read and compared block by block, by what real qemu-img says of where their content lies."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from haulier.definition.storage import Image
from haulier.errors import StepFailed
from haulier.hypervisor.differences import COMPARED, marking
from haulier.hypervisor.digests import digests_bytes, read_digests, write_digests
from haulier.hypervisor.generations import Bitmap, read_bitmaps
from haulier.hypervisor.images import create_image, image_info
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.reader import ReadDisk, open_reader
from tests.contract.real import run

pytestmark = pytest.mark.real

KIB, MIB, BLOCK = 1 << 10, 1 << 20, 64 << 10
KEY = b"a key of 32 bytes for both sides"
Ranges = list[tuple[int, int]]
PORTION = 3000


def make(path: Path, format: str, *commands: str, size: int = 32 * MIB) -> Image:
    """An image with what qemu-io has written to it."""
    create_image(path, format=format, size_bytes=size)
    write(path, format, *commands)
    return Image(path, format)


def write(path: Path, format: str, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    if words:
        subprocess.run(["qemu-io", "-f", format, *words, str(path)], check=True, timeout=30, capture_output=True)


def differing(one: Image, other: Image, *, size: int = 32 * MIB, key: bytes = KEY) -> Ranges:
    """Where two images differ; the other one's digests cross as a file."""
    file, told = other.path.with_suffix(".digests"), list[int]()
    run(write_digests(other, file, size_bytes=size, key=KEY, report=told.append))
    assert told[-1] >= size
    assert file.stat().st_size == digests_bytes(size)
    return run(_differing(one, file, size=size, key=key))


async def _differing(image: Image, digests: Path, *, size: int, key: bytes) -> Ranges:
    found: Ranges = []
    with digests.open("rb") as file:
        async for blocks in read_digests(image, size_bytes=size, key=key):
            found += blocks.differing(file.read(len(blocks.digests)), size_bytes=size)
    return found


# The second part goes on behind the border of two windows.
BOTH = ("write -P 1 0 1M", "write -P 2 15M 5M", "write -z 25M 1M")
ALL_OF_IT = [(0, MIB), (15 * MIB, MIB), (16 * MIB, 4 * MIB)]


@pytest.mark.parametrize("ours", ["raw", "qcow2"])
@pytest.mark.parametrize("theirs", ["raw", "qcow2"])
def test_blocks_that_differ(tmp_path: Path, ours: str, theirs: str) -> None:
    """By one byte; by what only one of them has; across the border of two windows; at the very end."""
    here = make(tmp_path / "here", ours, *BOTH)
    there = make(tmp_path / "there", theirs, *BOTH)
    assert differing(here, there) == []
    write(here.path, ours, "write -P 9 18M 1", f"write -P 7 {16 * MIB - BLOCK} {2 * BLOCK}")
    write(there.path, theirs, "write -P 3 24M 4k", f"write -P 4 {32 * MIB - 512} 512")
    assert differing(here, there) == [
        (16 * MIB - BLOCK, BLOCK), (16 * MIB, BLOCK), (18 * MIB, BLOCK), (24 * MIB, BLOCK), (32 * MIB - BLOCK, BLOCK),
    ]  # fmt: skip
    assert differing(there, here) == differing(here, there)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_zeroes_are_zeroes_whether_written_or_not(tmp_path: Path, format: str) -> None:
    written = make(tmp_path / "written", format, "write -P 0 0 32M")
    hole = make(tmp_path / "hole", format)
    assert differing(written, hole) == []
    digests = tmp_path / "hole.digests"
    assert digests.stat().st_blocks == 0, "holes stay holes"


def test_last_block_is_short(tmp_path: Path) -> None:
    size = 528 * KIB
    here, there = (make(tmp_path / name, "raw", "write -P 1 0 528k", size=size) for name in ("here", "there"))
    write(here.path, "raw", "write -P 2 527k 1k")
    assert differing(here, there, size=size) == [(512 * KIB, 16 * KIB)]


def test_guest_that_knows_the_digests_of_blocks_does_not_know_these(tmp_path: Path) -> None:
    image = make(tmp_path / "image", "raw", *BOTH)
    assert differing(image, image, key=b"another") == ALL_OF_IT


def test_what_cannot_be_read_is_taken_for_different(tmp_path: Path) -> None:
    """A compressed cluster is nowhere in the file as its guest sees it."""
    plain, compressed = make(tmp_path / "plain", "qcow2", *BOTH), tmp_path / "compressed"
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", plain.path, compressed], check=True, timeout=30)
    assert differing(Image(compressed, "qcow2"), plain) == ALL_OF_IT
    assert differing(plain, Image(compressed, "qcow2")) == ALL_OF_IT
    assert differing(Image(compressed, "qcow2"), Image(compressed, "qcow2")) == ALL_OF_IT


def test_what_a_snapshot_holds_is_not_what_the_guest_sees(tmp_path: Path) -> None:
    here, there = (make(tmp_path / name, "qcow2", *BOTH) for name in ("here", "there"))
    subprocess.run(["qemu-img", "snapshot", "-c", "kept", here.path], check=True, timeout=30)
    write(here.path, "qcow2", "write -P 8 0 64k")
    assert differing(here, there) == [(0, BLOCK)]
    subprocess.run(["qemu-img", "snapshot", "-a", "kept", here.path], check=True, timeout=30)
    assert differing(here, there) == []


def test_content_in_another_file_is_not_looked_for_in_this_one(tmp_path: Path) -> None:
    """`map` does not say in which file: all of it is taken for different."""
    image, data = tmp_path / "image", tmp_path / "data.raw"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", str(image), "32M"]
    subprocess.run(words, check=True, timeout=30)
    write(image, "qcow2", *BOTH)
    plain = make(tmp_path / "plain", "qcow2")
    assert differing(plain, Image(image, "qcow2")) == ALL_OF_IT
    assert differing(Image(image, "qcow2"), plain) == ALL_OF_IT


def test_image_that_is_cut_finely(tmp_path: Path) -> None:
    """More parts than are asked for at a time; and an image of more than one portion."""
    size = 400 * MIB
    here = make(tmp_path / "here", "qcow2", size=size)
    write(here.path, "qcow2", *(f"write -P 5 {at * 128}k 4k" for at in range(1200)), "write -P 6 399M 1M")
    there = tmp_path / "there"
    subprocess.run(["qemu-img", "convert", "-O", "raw", here.path, there], check=True, timeout=30)
    assert differing(here, Image(there), size=size) == []
    write(there, "raw", "write -P 7 1000k 1k", "write -P 7 399M 1k")
    assert differing(here, Image(there), size=size) == [(960 * KIB, BLOCK), (399 * MIB, BLOCK)]


def test_content_in_another_file_is_told(tmp_path: Path) -> None:
    image, data = tmp_path / "image.qcow2", tmp_path / "data.raw"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}"]
    subprocess.run([*words, str(image), "1M"], check=True, timeout=30)
    assert image_info(image, format="qcow2").data_file == str(data)


def test_image_that_is_not_there(tmp_path: Path) -> None:
    to = tmp_path / "digests"
    with pytest.raises(StepFailed, match="qemu_img_failed"):
        run(write_digests(Image(tmp_path / "gone"), to, size_bytes=MIB, key=KEY, report=lambda _: None))


def test_bitmaps_that_have_missed_nothing(tmp_path: Path) -> None:
    image = make(tmp_path / "image", "qcow2").path
    for name in ("whole", "other"):
        subprocess.run(["qemu-img", "bitmap", "--add", image, name], check=True, timeout=30)
    assert image_info(image, format="qcow2").bitmaps == {"whole", "other"}
    # A writer that dies has not put down what it knew.
    commands = ("-c", "write 0 64k", "-c", "flush", "-c", "abort")
    subprocess.run(["qemu-io", "-f", "qcow2", *commands, image], check=False, timeout=30, capture_output=True)
    assert image_info(image, format="qcow2").bitmaps == frozenset()


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_bitmap_that_says_where_it_differs(make_place: Callable[[str], VmPlace], format: str) -> None:
    place = make_place("alpha")
    size = 3 << 30
    image = make(place.logs / "disk", format, "write -P 1 0 64k", size=size)
    ranges = [(0, BLOCK), (MIB, 3 * BLOCK), (64 * MIB, (2 << 30) + MIB), (size - BLOCK, BLOCK)]
    assert run(_marked(place, image, ranges, size=size)) == [
        Bitmap("scsi0", COMPARED, usable=True, dirty_bytes=sum(length for _, length in ranges))
    ]
    assert run(_marked(place, image, [], size=size)) == [Bitmap("scsi0", COMPARED, usable=True, dirty_bytes=0)]
    assert image_info(image.path, format=format).bitmaps == frozenset(), "nothing of it is left in the image"
    assert differing(image, make(place.logs / "same", format, "write -P 1 0 64k", size=size), size=size) == []


async def _marked(place: VmPlace, image: Image, ranges: Ranges, *, size: int) -> list[Bitmap]:
    async with open_reader(place, [ReadDisk("scsi0", image)], keys=None) as monitor:
        async with marking(monitor, "scsi0", size_bytes=size, socket=place.marks_socket) as marks:
            for at in range(0, len(ranges), PORTION):
                await marks.add(ranges[at : at + PORTION])
        return list(await read_bitmaps(monitor, ["scsi0"]))


def test_many_places_where_it_differs(make_place: Callable[[str], VmPlace]) -> None:
    """More than are told at a time."""
    place = make_place("alpha")
    size = 2 << 30
    image = make(place.logs / "disk", "raw", size=size)
    ranges = [(2 * number * BLOCK, BLOCK) for number in range(10_000)]
    (found,) = run(_marked(place, image, ranges, size=size))
    assert found.dirty_bytes == 10_000 * BLOCK


def test_range_that_the_disk_does_not_have(make_place: Callable[[str], VmPlace]) -> None:
    place = make_place("alpha")
    image = make(place.logs / "disk", "raw")
    with pytest.raises(StepFailed, match="not_marked"):
        run(_marked(place, image, [(0, BLOCK), (64 * MIB, BLOCK)], size=32 * MIB))
