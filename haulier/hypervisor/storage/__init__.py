"""Storages of this node: one driver for each kind, all with one face.

A volume is named by its path, whatever it is: a file, or the device of a logical volume. What it is for, and whose it
is, nothing here knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from haulier.definition.storage import StorageKind, StoragePlace
from haulier.hypervisor.storage.block import BlockDriver
from haulier.hypervisor.storage.driver import StorageDriver
from haulier.hypervisor.storage.folder import FolderDriver
from haulier.hypervisor.storage.lvm import LvmDriver

__all__ = ["StorageDriver", "driver_at", "driver_of"]


def driver_at(path: Path, places: Iterable[StoragePlace]) -> StorageDriver:
    """The driver of the storage that a path names, by its words alone; one that takes it for none of its volumes if it
    names none.
    """
    inside = (place for place in places if path.is_relative_to(place.folder))
    place = max(inside, key=lambda each: len(each.folder.parts), default=StoragePlace(StorageKind.FOLDER, path))
    return driver_of(place)


def driver_of(place: StoragePlace) -> StorageDriver:
    """The driver of a storage."""
    match place.kind:
        case StorageKind.FOLDER | StorageKind.MOUNT:
            return FolderDriver(place)
        case StorageKind.LVM | StorageKind.LVMTHIN:
            return LvmDriver(place)
        case StorageKind.BLOCK:
            return BlockDriver(place)
