"""Read Proxmox VE's `storage.cfg`: which storages there are, of what kind, and on which nodes.

Keeps every kind, known or not: whether Haulier can use a storage is for another layer to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from haulier.definition.storage import StorageKind, StoragePlace
from haulier.definition.values import Reasons, clean_text, host_path, shown, storage_name
from haulier.errors import Problem, Refused

_HEADER = re.compile(r"([a-z][a-z0-9]*):\s*(\S+)\s*")
_OPTION = re.compile(r"\s+([a-z][a-z0-9_-]*)(?:\s+(.*?))?\s*")
# Kinds that Proxmox VE takes as shared whatever the file says, and those among them that it mounts below /mnt/pve.
_SHARED_KINDS: Final = frozenset(
    {"nfs", "cifs", "cephfs", "glusterfs", "rbd", "iscsi", "iscsidirect", "zfs", "pbs", "esxi"}
)
_MOUNTED_KINDS: Final = frozenset({"nfs", "cifs", "cephfs", "glusterfs"})
# What LVM takes for the name of a volume group or a pool, and what is a folder of /dev besides.
_LVM_NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,126}")
_OWN_KINDS: Final = frozenset({"dir", "lvm", "lvmthin", "block"})
_SUPPORTED: Final = "Supported are `dir`, what is mounted, `lvm`, `lvmthin`, and `block` for devices that are there."


@dataclass(frozen=True, slots=True)
class StorageSpec:
    """One storage. `nodes` empty means every node; `options` holds the remaining keys as they stand."""

    name: str
    kind: str
    path: str | None = None
    shared: bool = False
    nodes: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)

    def is_on(self, node: str) -> bool:
        """Whether a node of this name has it."""
        return not self.nodes or node in self.nodes

    @property
    def is_usable(self) -> bool:
        """Whether it is of a kind that Haulier knows, and in use."""
        return not self.is_disabled and (self.kind in _OWN_KINDS or self.is_mounted)

    def place(self) -> StoragePlace:
        """Where its volumes are on a node. Raises Refused for a kind that Haulier cannot use, or uses on one node only
        and that is said to be shared.
        """
        if (self.kind == "dir" or self.is_mounted) and self.path is not None:
            # Where PVE keeps images of a `dir` storage.
            kind = StorageKind.MOUNT if self.is_mounted else StorageKind.FOLDER
            return StoragePlace(kind, Path(self.path) / "images")
        if self.kind not in _OWN_KINDS:
            raise Refused("storage_kind", f"storage {self.name} is of kind {self.kind}", _SUPPORTED)
        if self.shared:
            words = f"storage {self.name} of kind {self.kind} is said to be shared"
            raise Refused("storage_kind", words, "Only folders can be: two nodes would open one device.")
        if self.kind == "block":
            return StoragePlace(StorageKind.BLOCK, Path(self.path or self._option("path")))
        pool = self._lvm_name("thinpool") if self.kind == "lvmthin" else None
        return StoragePlace(StorageKind(self.kind), Path("/dev") / self._lvm_name("vgname"), pool)

    def _lvm_name(self, key: str) -> str:
        name = self._option(key)
        if not _LVM_NAME.fullmatch(name):
            raise Refused("invalid_value", f"storage {self.name}: {key} {shown(name)} is no name", "See lvm(8).")
        return name

    def _option(self, key: str) -> str:
        if not self.options.get(key):
            raise Refused("invalid_value", f"storage {self.name} has no {key}", f"add an indented line: {key} ...")
        return self.options[key]

    @property
    def is_mounted(self) -> bool:
        """Whether the folder is another file system's, and the wrong one as long as that is not mounted.

        Proxmox VE also takes a folder above it for `is_mountpoint`; that is not looked at.
        """
        said = self.options.get("is_mountpoint", "0")
        return self.kind in _MOUNTED_KINDS or said in ("1", "yes", "on", "true", self.path)

    @property
    def is_disabled(self) -> bool:
        return self.options.get("disable", "0") not in ("0", "no", "off", "false")

    @property
    def content(self) -> tuple[str, ...]:
        """What may be kept there, for example `images` and `iso`; empty when the file does not say."""
        return tuple(word for word in re.split(r"[,;\s]+", self.options.get("content", "")) if word)


@dataclass(slots=True)
class _Section:
    number: int
    kind: str
    name: str
    options: dict[str, str] = field(default_factory=dict)


def read_storage_cfg(text: str, *, source: str) -> tuple[StorageSpec, ...]:
    """Read the text of a `storage.cfg`; an empty one holds no storage.

    Raises `Refused` with every fault of the text at once, each with its line number; `not_a_config` when the text is
    something else altogether.
    """
    reasons = Reasons()
    sections = _sections(text, source=source, reasons=reasons)
    if reasons.problems and not sections:
        message = f"{source}:1: this is no storage.cfg: no storage was found in it"
        raise Refused(
            "not_a_config", message, "write for example: dir: local, and below it, indented: path /var/lib/vz"
        )
    storages: dict[str, StorageSpec] = {}
    for section in sections:
        with reasons.at(f"{source}:{section.number}: {section.kind}"):
            spec = _storage(section)
            if spec.name in storages:
                raise Refused("duplicate_storage", f"storage {spec.name} is there twice", "give each its own name")
            storages[spec.name] = spec
    reasons.raise_any()
    return tuple(storages.values())


def _sections(text: str, *, source: str, reasons: Reasons) -> list[_Section]:
    sections: list[_Section] = []
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = raw.removesuffix("\r")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if header := _HEADER.fullmatch(line):
            sections.append(_Section(number, header.group(1), header.group(2)))
        elif (option := _OPTION.fullmatch(line)) and sections:
            with reasons.at(f"{source}:{number}: {option.group(1)}"):
                # A key alone is a switch that is on.
                sections[-1].options[option.group(1)] = clean_text(option.group(2) or "1")
        else:
            message = f"{source}:{number}: {shown(line)} is neither a storage nor an option of one"
            reasons.problems.append(Problem("invalid_line", message, "indent the options of a storage"))
    return sections


def _storage(section: _Section) -> StorageSpec:
    name, options = storage_name(section.name), section.options
    path = options.pop("path", f"/mnt/pve/{name}" if section.kind in _MOUNTED_KINDS else None)
    if section.kind == "dir" and path is None:
        raise Refused("invalid_value", f"storage {name} has no path", "add an indented line: path /some/folder")
    is_shared = options.pop("shared", "0") not in ("0", "no", "off", "false")
    return StorageSpec(
        name=name,
        kind=section.kind,
        path=None if path is None else host_path(path),
        shared=is_shared or section.kind in _SHARED_KINDS,
        nodes=tuple(node for node in re.split(r"[,;\s]+", options.pop("nodes", "")) if node),
        options=options,
    )
