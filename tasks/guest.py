"""The guest's machine on this node, made from rows: what `vm start` and `open_target` have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haulier.definition import Role, VmDefinition, VolumeSpec
from haulier.definition.storage import Image
from haulier.errors import StepFailed
from haulier.hypervisor.command_line import MachineSpec
from haulier.hypervisor.devices import Drive, node_name
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.machine import find_firmware, launch
from haulier.hypervisor.processes import last_words, log_size
from haulier.hypervisor.swtpm import SwtpmFacts, start_swtpm
from haulier.settings import Settings


async def launch_guest(place: VmPlace, spec: MachineSpec, *, tpm: Path | None, swtpm: SwtpmFacts | None) -> int:
    """Start swtpm, then QEMU, and wait until it answers. Returns QEMU's pid.

    Raises StepFailed with the words of the one that failed; what runs then is for the caller's undo to stop.
    """
    # What an earlier QEMU left, which was killed, is not this one's.
    place.forget_epoch()
    since = log_size(place.swtpm.log)
    if tpm is not None and swtpm is not None:
        start_swtpm(place, tpm, facts=swtpm)
    try:
        return await launch(place, spec)
    except StepFailed as error:
        words = last_words(place.swtpm.log, since=since)
        if tpm is None or place.swtpm.pid() is not None or not words:
            raise
        raise StepFailed("swtpm_not_started", f"swtpm did not start: {words}", "swtpm's own words.") from error


@dataclass(frozen=True, slots=True)
class DiskFiles:
    """Where a disk is: its own image, and the overlay that the guest runs on as long as it is not merged."""

    image: Image
    overlay: Path | None = None


def _drive(volume: VolumeSpec, files: DiskFiles | None) -> Drive:
    return Drive(
        device=volume.device,
        role=volume.role,
        node_name=node_name(volume.device),
        path=files.image.path if files else None,
        format=files.image.format if files else volume.format,
        read_only=volume.read_only or volume.role in (Role.CDROM, Role.CLOUDINIT),
        overlay=files.overlay if files else None,
        device_bytes=files.image.device_bytes if files else None,
    )


def machine_spec(
    definition: VmDefinition,
    pinned: Mapping[str, Any],
    *,
    place: VmPlace,
    files: Mapping[str, DiskFiles],
    settings: Settings,
    incoming: bool = False,
) -> MachineSpec:
    """The machine with its disks' `files` (by device) on this node. `pinned` is what the first start fixed."""
    drives = tuple(_drive(volume, files.get(volume.device)) for volume in definition.volumes if volume.is_opened)
    variables = next((volume.size_bytes for volume in definition.volumes if volume.role is Role.EFIDISK), None)
    return MachineSpec(
        definition=dataclasses.replace(definition, machine=pinned["machine"], cpu=pinned["cpu"]),
        program=settings.qemu,
        accel=pinned["accel"],
        ram_kib=pinned["ram_kib"],
        run_dir=place.run,
        log_dir=place.logs,
        drives=drives,
        uuid=str(definition.uuid),
        tpm_socket=place.tpm_socket if definition.tpm_version else None,
        incoming=incoming,
        network=settings.network,
        firmware_code=find_firmware(definition.firmware, variables_bytes=variables),
    )
