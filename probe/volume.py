"""Reads the ring of numbered sectors that the guest keeps on a disk, and says whether it is whole."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SECTOR_BYTES", "Record", "VolumeError", "VolumeVerdict", "pack_record", "verify_volume"]

SECTOR_BYTES = 512
HEAD_MAGIC = b"HPHEAD01"
DATA_MAGIC = b"HPDATA01"
HEAD_SECTORS = (2047, 1)  # disks of the usual size, and small ones
_LAYOUT = struct.Struct("<8sQQQQIIQ")
_FILLER_WORDS = (SECTOR_BYTES - _LAYOUT.size - 4) // 4
_NO_TPM = 2**64 - 1
_NAMED_HOLES = 5


class VolumeError(RuntimeError):
    """The volume could not be read; says nothing about what is on it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sector of the guest. `tpm` is the TPM counter when it was written, None without a TPM."""

    magic: bytes
    sequence: int
    tick: int
    boot: str
    tpm: int | None
    index: int
    ring: int
    base: int


@dataclass(frozen=True, kw_only=True)
class VolumeVerdict:
    """What one volume says. `ok` means: the ring ends where the header says, and has no holes."""

    ok: bool
    problems: tuple[str, ...]
    sequence: int
    """Newest sequence number in the ring; 0 if nothing was ever written."""
    tick: int
    boot: str
    tpm: int | None
    index: int
    """Which of the guest's disks this was."""
    ring: int


def verify_volume(volume: Path | bytes) -> VolumeVerdict:
    """Judge a volume: a raw or qcow2 file that no QEMU has open, or raw bytes.

    Raises:
        VolumeError: the file is missing, in use, or qemu-img cannot read it.
    """
    if isinstance(volume, bytes):
        return _judge(volume)
    with _as_raw(volume) as raw:
        return _judge(_head_of(raw))


def pack_record(record: Record) -> bytes:
    """Return the sector as the guest writes it."""
    tpm = _NO_TPM if record.tpm is None else record.tpm
    boot = int(record.boot, 16)
    body = _LAYOUT.pack(
        record.magic, record.sequence, record.tick, boot, tpm, record.index, record.ring, record.base
    ) + _filler(record.sequence)
    return body + struct.pack("<I", zlib.crc32(body))


def _filler(sequence: int) -> bytes:
    first = sequence * 2654435761
    return struct.pack(f"<{_FILLER_WORDS}I", *((first + i) % 2**32 for i in range(_FILLER_WORDS)))


def _unpack(sector: bytes, magic: bytes) -> Record | None:
    if len(sector) != SECTOR_BYTES or not sector.startswith(magic):
        return None
    if struct.unpack_from("<I", sector, SECTOR_BYTES - 4)[0] != zlib.crc32(sector[:-4]):
        return None
    _, sequence, tick, boot, tpm, index, ring, base = _LAYOUT.unpack_from(sector)
    return Record(
        magic=magic,
        sequence=sequence,
        tick=tick,
        boot=f"{boot:012x}",
        tpm=None if tpm == _NO_TPM else tpm,
        index=index,
        ring=ring,
        base=base,
    )


def _judge(raw: bytes) -> VolumeVerdict:
    head = _find_head(raw)
    if head is None:
        return _verdict(None, ["no header of the probe guest: blank, or not its volume"])
    data = _read_ring(raw, head)
    mine = [record for record in data if record is not None]
    newest = max(mine, key=lambda record: record.sequence, default=None)
    problems = []
    if newest is None or newest.sequence not in (head.sequence, head.sequence + 1):
        found = newest.sequence if newest else "none"
        problems.append(f"the header speaks of {head.sequence}, the newest sector is {found}")
    return _verdict(newest or head, problems + _holes(data, head, newest))


def _find_head(raw: bytes) -> Record | None:
    for sector in HEAD_SECTORS:
        record = _unpack(_sector(raw, sector), HEAD_MAGIC)
        if record is not None and record.base == sector + 1 and record.ring > 0:
            return record
    return None


def _sector(raw: bytes, number: int) -> bytes:
    return raw[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES]


def _read_ring(raw: bytes, head: Record) -> list[Record | None]:
    return [_unpack(_sector(raw, head.base + slot), DATA_MAGIC) for slot in range(head.ring)]


def _holes(data: list[Record | None], head: Record, newest: Record | None) -> list[str]:
    """Each slot must hold the newest number that belongs there."""
    top = max(head.sequence, newest.sequence if newest else 0)
    wrong = []
    for sequence in range(max(1, top - head.ring + 1), top + 1):
        record = data[sequence % head.ring]
        if record is None or record.sequence != sequence or record.index != head.index:
            wrong.append((sequence, record.sequence if record else None))
    named = ", ".join(f"{want} (there is {'nothing' if got is None else got})" for want, got in wrong[:_NAMED_HOLES])
    more = f" and {len(wrong) - _NAMED_HOLES} more" if len(wrong) > _NAMED_HOLES else ""
    return [f"lost from the ring: {named}{more}"] if wrong else []


def _verdict(record: Record | None, problems: list[str]) -> VolumeVerdict:
    return VolumeVerdict(
        ok=not problems,
        problems=tuple(problems),
        sequence=record.sequence if record else 0,
        tick=record.tick if record else 0,
        boot=record.boot if record else "",
        tpm=record.tpm if record else None,
        index=record.index if record else 0,
        ring=record.ring if record else 0,
    )


def _head_of(raw: Path) -> bytes:
    """As much of a raw volume as the guest can have written; a volume may be large."""
    size_bytes = (max(HEAD_SECTORS) + 1) * SECTOR_BYTES
    with raw.open("rb") as file:
        start = file.read(size_bytes)
        head = _find_head(start)
        return start if head is None else start + file.read((head.base + head.ring) * SECTOR_BYTES)


@contextmanager
def _as_raw(volume: Path) -> Iterator[Path]:
    try:
        with volume.open("rb") as file:
            is_qcow2 = file.read(4) == b"QFI\xfb"
    except OSError as error:
        raise VolumeError(f"{volume}: {error.strerror}") from error
    if not is_qcow2:
        yield volume
        return
    with tempfile.TemporaryDirectory(prefix="probe-volume-") as scratch:
        raw = Path(scratch) / "volume.raw"
        _convert(volume, raw)
        yield raw


def _convert(volume: Path, raw: Path) -> None:
    tool = shutil.which("qemu-img")
    if tool is None:
        raise VolumeError(f"{volume}: reading a qcow2 volume needs qemu-img (Debian: apt-get install qemu-utils)")
    command = [tool, "convert", "-f", "qcow2", "-O", "raw", str(volume), str(raw)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise VolumeError(f"{volume}: {result.stderr.strip()}")
