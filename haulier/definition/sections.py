"""The sections of a Proxmox VE guest file beside the main one: pending changes and snapshots.

Their text is kept as it is. What they refer to and the main section does not is a volume of the VM all the same: it is
found here, so that it is not left behind, and where a volume goes, the text follows. Pure.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

from haulier.definition import proxmox_values
from haulier.definition.model import Role, VmDefinition, VolumeSpec

PENDING = "PENDING"
_VOLUME_LINE = re.compile(
    r"((?:ide|sata|scsi|virtio|efidisk|tpmstate|unused)[0-9]+|vmstate): *(?:file=|volume=)?([^,\s]+)(.*)", re.DOTALL
)


def section_volumes(header: str, lines: Iterable[str], *, known: set[tuple[str | None, str]]) -> Iterator[VolumeSpec]:
    """The volumes that a section refers to and nothing before it did. `known` grows by them.

    Raises Refused for a line that no volume can be read from.
    """
    section = header.strip("[]")
    for line in lines:
        match = _VOLUME_LINE.fullmatch(line.strip())
        if match is None:
            continue
        key, place, options = match.groups()
        spec = proxmox_values.volume(key, place + options)
        if spec.name is None or (spec.storage, spec.name) in known:
            continue
        known.add((spec.storage, spec.name))
        yield dataclasses.replace(
            spec,
            device=f"{section}.{key}",
            role=_role(spec.role, section),
            section=section,
            # It is there or it is missed: nothing is made in its place.
            size_bytes=None,
        )


def _role(role: Role, section: str) -> Role:
    """A disk that is only to be attached is nobody's yet."""
    return Role.UNUSED if section == PENDING and role in (Role.DISK, Role.EFIDISK) else role


Place = tuple[str | None, str]
"""A storage and the name in it; without a storage an absolute path."""


def moved(
    definition: VmDefinition, places: Mapping[Place, Place], *, formats: Mapping[Place, str] | None = None
) -> VmDefinition:
    """The same VM after its volumes were moved: everything that named an old place names the new one.

    `formats` has, by the old place, what a volume has become where that is not what it was.
    """
    formats = formats or {}
    volumes = tuple(_moved_volume(volume, places, formats) for volume in definition.volumes)
    sections = {
        key: "\n".join(_moved_line(line, places, formats) for line in text.split("\n")) if key.startswith("[") else text
        for key, text in definition.ignored.items()
    }
    return dataclasses.replace(definition, volumes=volumes, ignored=sections)


def _moved_volume(volume: VolumeSpec, places: Mapping[Place, Place], formats: Mapping[Place, str]) -> VolumeSpec:
    if volume.name is None or (volume.storage, volume.name) not in places:
        return volume
    old = (volume.storage, volume.name)
    storage, name = places[old]
    return dataclasses.replace(volume, storage=storage, name=name, format=formats.get(old, volume.format))


def _moved_line(line: str, places: Mapping[Place, Place], formats: Mapping[Place, str]) -> str:
    match = _VOLUME_LINE.fullmatch(line)
    if match is None:
        return line
    key, place, options = match.groups()
    storage, colon, name = place.partition(":")
    old = (storage, name) if colon else (None, place)
    found = places.get(old)
    if old in formats:
        options = re.sub(r"(?<=,format=)[a-z0-9]+", formats[old], options)
    return line if found is None else f"{key}: {_written(found)}{options}"


def _written(place: Place) -> str:
    """As a guest file names it."""
    storage, name = place
    return name if storage is None else f"{storage}:{name}"
