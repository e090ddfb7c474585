"""What lies in a TPM's state volume: swtpm's linear container, read without swtpm.

The container is a header (8 bytes `swtpmlin` little-endian, version, header size) and up to fifteen entries of offset,
length and section length; the first three are the permanent, the volatile and the saved state (swtpm,
src/swtpm/swtpm_nvstore_linear.h). swtpm rewrites and shrinks the container as it likes, so a digest is taken over the
permanent blob itself: all that a TPM may not forget.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from haulier.errors import StepFailed

_MAGIC = 0x737774706D6C696E
_HEADER = struct.Struct("<QBBH")
_ENTRY = struct.Struct("<III")
_ENTRIES = 15
# Before each blob swtpm writes: version, least version, header size, flags, total length; big-endian, 10 bytes.
_BLOB_HEADER = struct.Struct(">BBHHI")
_READS = 50


@dataclass(frozen=True, slots=True)
class TpmState:
    """One reading of a state volume: the container's bytes and the permanent blob in it."""

    container: bytes
    permanent: bytes

    @property
    def is_blank(self) -> bool:
        """True if no TPM was ever made here: swtpm would quietly make a new one."""
        return not self.permanent

    @property
    def digest(self) -> str:
        """Hex SHA-256 over the permanent blob; equal on two nodes if and only if nothing of the TPM was lost."""
        return hashlib.sha256(self.permanent).hexdigest()


def parse(container: bytes) -> TpmState:
    """Take a container apart. Raises StepFailed for bytes that are neither a container nor blank."""
    if not container.strip(b"\0"):
        return TpmState(container, b"")
    try:
        magic, _version, _padding, _size = _HEADER.unpack_from(container)
        offset, length, _section = _ENTRY.unpack_from(container, _HEADER.size)
    except struct.error as error:
        raise _broken("is shorter than its header") from error
    if magic != _MAGIC:
        raise _broken("does not begin as swtpm's linear store does")
    blob = container[offset : offset + length] if offset else b""
    if offset and len(blob) < length:
        raise _broken("ends inside the permanent state")
    return TpmState(container, _without_header(blob))


def _without_header(blob: bytes) -> bytes:
    """Another swtpm version may write another header around the same state, so it is left out of the digest."""
    if len(blob) < _BLOB_HEADER.size:
        return blob
    _version, _least, size, _flags, total = _BLOB_HEADER.unpack_from(blob)
    return blob[size:] if size == _BLOB_HEADER.size and total == len(blob) else blob


def _broken(what: str) -> StepFailed:
    return StepFailed("tpm_state_broken", f"the TPM state volume {what}", "Is it a raw volume that swtpm wrote?")


def _read_used(path: Path) -> bytes:
    """The container as far as it is in use: of a volume of 4 MiB a few KiB, and reading the rest costs 13 ms of a
    pause.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER.size + _ENTRIES * _ENTRY.size)
        if len(head) < _HEADER.size + _ENTRIES * _ENTRY.size or _HEADER.unpack_from(head)[0] != _MAGIC:
            # swtpm, too, tells a blank volume by its head; a device has anything behind it.
            return head
        ends = [offset + length for offset, length, _section in _ENTRY.iter_unpack(head[_HEADER.size :])]
        # A broken table may name any length; no more is asked for than there is.
        there = file.seek(0, os.SEEK_END)
        file.seek(len(head))
        return head + file.read(max(0, min(max(ends), there) - len(head)))


def read_state(path: Path) -> TpmState:
    """Read a state that may be written meanwhile: until two readings one after the other agree.

    A write takes swtpm well below a millisecond, so that a handful of readings is enough. Raises StepFailed when the
    volume cannot be read, is broken, or never holds still.
    """
    previous: bytes | None = None
    for _ in range(_READS):
        try:
            current = _read_used(path)
        except OSError as error:
            raise StepFailed(
                "tpm_state_unreadable", f"the TPM state {path} cannot be read: {error.strerror}", "Is the volume there?"
            ) from error
        if current == previous:
            return parse(current)
        previous = current
    raise StepFailed("tpm_state_unstable", f"the TPM state {path} changes all the time", "Is the guest in a TPM loop?")
