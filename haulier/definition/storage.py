"""Storages: what each kind can hold, and what a volume is called there. Pure; the drivers are in
haulier/hypervisor/storage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Final

from haulier.definition.values import FORMATS
from haulier.errors import Problem

# What LVM takes for the name of a volume, but for the words that it keeps for its own (lvm(8)).
_DEVICE_NAME = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}")
_LVM_WORDS = re.compile(
    r"\.\.?|(snapshot|pvmove).*"
    r"|.*_(c(data|meta|ol|orig|pool|vol)|i(meta|orig)|m(image|log)|pmspare|r(image|meta)|t(data|meta)|v(data|orig|origin)).*"
)


class StorageKind(StrEnum):
    """As the rows name it."""

    FOLDER = "folder"
    MOUNT = "mount"
    LVM = "lvm"
    LVMTHIN = "lvmthin"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class KindFacts:
    """What is so of every storage of a kind.

    `formats`: those that it can hold, the first is what others become. `has_files`: a volume is a file, with holes, as
    long as its format needs; else it is a device, which may be larger than what its guest sees, and is raw.
    `is_zeroed`: a new volume reads as zeroes. `words` is what it is called in a sentence.
    """

    words: str
    formats: tuple[str, ...]
    has_files: bool
    is_zeroed: bool


KINDS: Final[dict[StorageKind, KindFacts]] = {
    StorageKind.FOLDER: KindFacts("a folder", FORMATS, has_files=True, is_zeroed=True),
    StorageKind.MOUNT: KindFacts("a mounted folder", FORMATS, has_files=True, is_zeroed=True),
    StorageKind.LVM: KindFacts("a volume group", ("raw",), has_files=False, is_zeroed=False),
    StorageKind.LVMTHIN: KindFacts("a thin pool", ("raw",), has_files=False, is_zeroed=True),
    StorageKind.BLOCK: KindFacts("devices that are there", ("raw",), has_files=False, is_zeroed=False),
}


@dataclass(frozen=True, slots=True)
class StoragePlace:
    """Where a storage is on a node: its volumes' paths are below `folder`, those of devices right below it.

    `pool` is the thin pool in a volume group.
    """

    kind: StorageKind
    folder: Path
    pool: str | None = None

    @property
    def facts(self) -> KindFacts:
        """What is so of its kind."""
        return KINDS[self.kind]

    def image(self, path: Path, form: str, size_bytes: int | None) -> Image:
        """A volume on it, as its guest sees it."""
        return Image(path, form, None if self.facts.has_files else size_bytes)


@dataclass(frozen=True, slots=True)
class Image:
    """What QEMU opens: a file in a format, or a device, of which the first `device_bytes` are the volume.

    A file whose own bytes are meant, whatever its format, is a `raw` one.
    """

    path: Path
    format: str = "raw"
    device_bytes: int | None = None


def format_on(kind: StorageKind, form: str) -> str:
    """The format that a volume has on a storage of this kind: its own, if that can be."""
    formats = KINDS[kind].formats
    return form if form in formats else formats[0]


def can_be_one_file(source: StorageKind, target: StorageKind, *, form: str) -> bool:
    """Whether a volume can be the same file on both, with its format and all that is in it."""
    return KINDS[source].has_files and KINDS[target].has_files and format_on(target, form) == form


def name_on(kind: StorageKind, name: str, *, form: str, vm: str) -> str:
    """What a volume is called on a storage of this kind: its own name, if it fits there, else one made of it.

    `101/vm-101-disk-0.qcow2` is `vm-101-disk-0` on devices, `web/scsi0.raw` is `web-scsi0`, and the other way round.
    """
    path = PurePosixPath(name)
    is_files_name = len(path.parts) > 1 or path.suffix.removeprefix(".") in FORMATS
    if KINDS[kind].has_files:
        return name if is_files_name else _as_file(name, form=form, vm=vm)
    return _as_device(path) if is_files_name else name


def _as_device(path: PurePosixPath) -> str:
    *folders, last = path.with_suffix("").parts if path.suffix.removeprefix(".") in FORMATS else path.parts
    words = [folder for folder in folders if folder not in last.split("-")]
    return re.sub(r"[^A-Za-z0-9_+.-]", "_", "-".join([*words, last])).lstrip("-")


def _as_file(name: str, *, form: str, vm: str) -> str:
    if numbered := re.fullmatch(r"(?:vm|base)-([0-9]+)-.+", name):
        return f"{numbered[1]}/{name}.{form}"
    return f"{vm}/{name.removeprefix(f'{vm}-')}.{form}"


def problem_of_place(kind: StorageKind, name: str, *, form: str) -> Problem | None:
    """Why a volume of this name and format cannot be on a storage of this kind; None if it can."""
    facts = KINDS[kind]
    if form not in facts.formats:
        words = f"{name} is {form}, and {facts.words} holds {' and '.join(facts.formats)} alone"
        return Problem("format_not_held", words, "Write format=raw.")
    if facts.has_files:
        return None
    if not _DEVICE_NAME.fullmatch(name) or _LVM_WORDS.fullmatch(name):
        return Problem("bad_volume_name", f"{name!r} is no name on {facts.words}", "Letters, digits and + _ . - alone.")
    return None
