"""Read Haulier's own file form: a short TOML that names a VM's parts, with a usual value for nearly everything.

The tables below are the reference of the form. Pure: text in, definition out.
"""

from __future__ import annotations

import difflib
import re
import shlex
import tomllib
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from haulier.definition.model import Nic, Role, VmDefinition, VolumeSpec
from haulier.definition.values import (
    EFIDISK_BYTES,
    NIC_LIMIT,
    NIC_MODELS,
    SCSI_CONTROLLERS,
    SERIAL_LIMIT,
    TPMSTATE_BYTES,
    Reasons,
    bridge_name,
    checked_nic,
    checked_volume,
    clean_text,
    guest_uuid,
    host_path,
    invalid,
    mac_address,
    machine_type,
    one_of,
    serial_target,
    shown,
    size_in_bytes,
    split_device,
    storage_name,
    vm_name,
    volume_format,
    volume_name,
)
from haulier.errors import Problem, Refused

_USUAL_STORAGE: Final = "local"
_LOOKS_LIKE_TOML = re.compile(r"^[ \t]*(\[\[?[\w.\"-]+\]?\]|[\w.\"-]+[ \t]*=)", re.MULTILINE)


def _size(value: object) -> object:
    """`"4G"` or a number of bytes, in bytes."""
    try:
        return size_in_bytes(value) if isinstance(value, str) else value
    except Refused as refused:
        raise ValueError(refused.problem.message) from refused


def _words(value: object) -> object:
    """Arguments may be written as a list, or as one text that is split as a shell would."""
    return shlex.split(value) if isinstance(value, str) else value


def _tpm(value: object) -> object:
    """`tpm = true` and `tpm = "v2.0"` are short forms of the table."""
    if isinstance(value, bool):
        return {} if value else None
    return {"version": value} if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(_size), Field(gt=0, lt=2**63)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DiskTable(_Table):
    """`[[disk]]`: a disk, CD-ROM, cloud-init or unused volume. Without `name` or `path` Haulier makes and names it."""

    device: str | None = None
    role: Literal["disk", "cdrom", "cloudinit", "unused"] = "disk"
    storage: str | None = None
    name: str | None = None
    path: str | None = None
    size: Size | None = None
    format: str | None = None
    read_only: bool = False
    serial: str | None = None


class NicTable(_Table):
    """`[[nic]]`: a network card. Without `mac` one is made up once and kept."""

    device: str | None = None
    model: str = "virtio"
    mac: str | None = None
    bridge: str | None = None
    mtu: Annotated[int, Field(ge=68, le=65520)] | None = None


class TpmTable(_Table):
    """`[tpm]`: where the state of the virtual TPM is kept. `tpm = true` takes the usual values."""

    version: Literal["v1.2", "v2.0"] = "v2.0"
    storage: str = _USUAL_STORAGE
    name: str | None = None
    size: Size = TPMSTATE_BYTES


class EfiTable(_Table):
    """`[efi]`: where UEFI keeps its variables; made with the usual values when firmware is ovmf."""

    storage: str = _USUAL_STORAGE
    name: str | None = None
    size: Size = EFIDISK_BYTES
    format: str | None = None


class VmTable(_Table):
    """The keys at the top of the file."""

    name: str | None = None
    vmid: Annotated[int, Field(ge=1, le=999_999_999)] | None = None
    memory_mib: Annotated[int, Field(ge=16, le=64 * 1024 * 1024)] = 512
    cores: Annotated[int, Field(ge=1, le=1024)] = 1
    sockets: Annotated[int, Field(ge=1, le=64)] = 1
    cpu: str | None = None
    machine: str | None = None
    firmware: Literal["seabios", "ovmf"] = "seabios"
    scsi_controller: str = "virtio-scsi-pci"
    serial: Annotated[list[str], Field(max_length=SERIAL_LIMIT)] = []
    args: Annotated[list[str], BeforeValidator(_words)] = []
    boot: list[str] = []
    uuid: str | None = None
    tags: list[str] = []
    disk: list[DiskTable] = []
    nic: Annotated[list[NicTable], Field(max_length=NIC_LIMIT)] = []
    tpm: Annotated[TpmTable | None, BeforeValidator(_tpm)] = None
    efi: EfiTable | None = None


_TABLES: Final[dict[str, type[BaseModel]]] = {"disk": DiskTable, "nic": NicTable, "tpm": TpmTable, "efi": EfiTable}


def looks_like_toml(text: str) -> bool:
    """Tell whether any line of a text could be TOML's `key = value` or a table's header."""
    return bool(_LOOKS_LIKE_TOML.search(text))


def read_toml(text: str, *, source: str) -> VmDefinition:
    """Read the text of a TOML definition; `source` is the name that error messages show.

    Raises `Refused` with every fault of the text at once, each with the path of its key; `not_a_config` when the text
    is something else altogether.
    """
    data = _parse(text, source=source)
    try:
        table = VmTable.model_validate(data)
    except ValidationError as error:
        raise Refused.because((*_faults(error, source=source), *_other_faults(data, error, source=source))) from error
    return _definition(table, source=source)


def _parse(text: str, *, source: str) -> dict[str, Any]:
    if not looks_like_toml(text):
        hint = "give a TOML file such as: name = 'web1'"
        raise Refused("not_a_config", f"{source}:1: this is no TOML definition: it has no key = value", hint)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4,300 digits
        line = re.search(r"line ([0-9]+)", str(error))
        place = f"{source}:{line.group(1)}" if line else source
        message = " ".join(str(error).split())
        raise Refused("invalid_syntax", f"{place}: no valid TOML: {message}", "mend the line") from error


def _faults(error: ValidationError, *, source: str) -> list[Problem]:
    problems = []
    for fault in error.errors(include_url=False, include_context=False):
        path = [part for part in fault["loc"] if part != "__root__"]
        place = f"{source}: {_written(path)}"
        if fault["type"] == "extra_forbidden":
            problems.append(_unknown_key(path, place=place))
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = "" if isinstance(fault["input"], dict) else f" (found {shown(fault['input'])})"
            problems.append(Problem("invalid_value", f"{place}: {message}{given}", "correct this value"))
    return problems


def _other_faults(data: dict[str, Any], error: ValidationError, *, source: str) -> tuple[Problem, ...]:
    """What is wrong with the meaning of the parts that pydantic has nothing against."""
    # The boot order names devices that may be among the others.
    rest = {key: value for key, value in data.items() if key != "boot"}
    for fault in error.errors(include_url=False, include_context=False):
        first, *inner = fault["loc"]
        if first == "disk" and inner and isinstance(inner[0], int):
            # Another one in its place, so that the numbers of those behind it stay.
            rest["disk"] = [{} if index == inner[0] else disk for index, disk in enumerate(rest["disk"])]
        else:
            rest.pop(str(first), None)
    try:
        _definition(VmTable.model_validate(rest), source=source)
    except Refused as refused:
        return refused.problems
    return ()


def _unknown_key(path: list[int | str], *, place: str) -> Problem:
    table = _TABLES.get(str(path[0]), VmTable) if len(path) > 1 else VmTable
    known = list(table.model_fields)
    nearest = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(known)}"
    return Problem("unknown_key", f"{place}: there is no such key", hint)


def _written(path: list[int | str]) -> str:
    """A key's path as people write it: `disk[0].size`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text if text.isprintable() else repr(text)


def _definition(table: VmTable, *, source: str) -> VmDefinition:
    """What pydantic cannot see: the meaning of the texts."""
    reasons = Reasons()
    fields: dict[str, Any] = {}
    for key, read in (("name", vm_name), ("machine", machine_type), ("uuid", guest_uuid), ("cpu", clean_text)):
        text = getattr(table, key)
        with reasons.at(f"{source}: {key}"):
            fields[key] = None if text is None else read(text)
    with reasons.at(f"{source}: scsi_controller"):
        fields["scsi_controller"] = one_of(table.scsi_controller, SCSI_CONTROLLERS, "SCSI controller")
    for key, target, read in (
        ("serial", "serials", serial_target),
        ("args", "args", clean_text),
        ("tags", "tags", clean_text),
    ):
        with reasons.at(f"{source}: {key}"):
            fields[target] = tuple(read(text) for text in getattr(table, key))
    volumes = _volumes(table, source=source, reasons=reasons)
    nics = _nics(table, source=source, reasons=reasons)
    with reasons.at(f"{source}: boot"):
        fields["boot"] = _boot(table.boot, {spec.device for spec in volumes} | {card.device for card in nics})
    reasons.raise_any()
    plain = {key: getattr(table, key) for key in ("vmid", "memory_mib", "cores", "sockets", "firmware")}
    tpm_version = table.tpm.version if table.tpm else None
    return VmDefinition(**plain, **fields, tpm_version=tpm_version, volumes=volumes, nics=nics)


def _boot(devices: list[str], known: set[str]) -> str | None:
    for device in devices:
        if device not in known:
            raise invalid("device of this VM", device, f"use {', '.join(sorted(known)) or 'no boot order'}")
    return f"order={';'.join(devices)}" if devices else None


def _volumes(table: VmTable, *, source: str, reasons: Reasons) -> tuple[VolumeSpec, ...]:
    volumes = _parts_of_platform(table, source=source, reasons=reasons)
    taken = {disk.device for disk in table.disk if disk.device}
    for index, disk in enumerate(table.disk):
        with reasons.at(f"{source}: disk[{index}]"):
            device = disk.device or _free_device(disk, taken)
            taken.add(device)
            if any(spec.device == device for spec in volumes):
                raise Refused("duplicate_device", f"{device} is used twice", "give each disk a device of its own")
            volumes.append(_disk(disk, device))
    return tuple(volumes)


def _parts_of_platform(table: VmTable, *, source: str, reasons: Reasons) -> list[VolumeSpec]:
    """The volumes of the firmware and the TPM."""
    volumes = []
    efi = table.efi or (EfiTable() if table.firmware == "ovmf" else None)
    for device, role, part, form in (
        ("efidisk0", Role.EFIDISK, efi, efi.format if efi else None),
        ("tpmstate0", Role.TPMSTATE, table.tpm, "raw"),
    ):
        if part is None:
            continue
        with reasons.at(f"{source}: {'efi' if role is Role.EFIDISK else 'tpm'}"):
            volumes.append(
                VolumeSpec(
                    device=device,
                    role=role,
                    storage=storage_name(part.storage),
                    name=None if part.name is None else volume_name(part.name),
                    format=volume_format(form, part.name),
                    size_bytes=part.size,
                )
            )
    return volumes


def _free_device(disk: DiskTable, taken: set[str]) -> str:
    bus, count = {"disk": ("virtio", 16), "unused": ("unused", 256)}.get(disk.role, ("sata", 6))
    for index in range(count):
        if f"{bus}{index}" not in taken:
            return f"{bus}{index}"
    raise Refused("invalid_device", f"no {bus} device is left", "give the disk a device, for example scsi0")


def _disk(disk: DiskTable, device: str) -> VolumeSpec:
    role = Role(disk.role)
    if role is not Role.UNUSED:
        split_device(device)
    elif not re.fullmatch(r"unused(0|[1-9][0-9]{0,2})", device):
        raise invalid("device of an unused volume", device, "use unused0, unused1 and so on")
    if disk.path is not None and (disk.name is not None or disk.storage is not None):
        raise invalid("way to name one volume", "path with storage or name", "give a path, or a storage and a name")
    is_empty = role is Role.CDROM and disk.path is None and disk.name is None
    if is_empty and disk.storage is not None:
        raise invalid(
            "CD-ROM", f"storage {disk.storage} alone", "give its name too, or leave both out for an empty drive"
        )
    storage = None if disk.path is not None or is_empty else storage_name(disk.storage or _USUAL_STORAGE)
    name = host_path(disk.path) if disk.path is not None else None if disk.name is None else volume_name(disk.name)
    return checked_volume(
        VolumeSpec(
            device=device,
            role=role,
            storage=storage,
            name=name,
            format=volume_format(disk.format, name),
            size_bytes=disk.size,
            read_only=disk.read_only or role in (Role.CDROM, Role.CLOUDINIT),
            options={"serial": clean_text(disk.serial)} if disk.serial else {},
        )
    )


def _nics(table: VmTable, *, source: str, reasons: Reasons) -> tuple[Nic, ...]:
    nics: dict[str, Nic] = {}
    for index, card in enumerate(table.nic):
        with reasons.at(f"{source}: nic[{index}]"):
            device = card.device or f"net{index}"
            if not re.fullmatch(r"net([0-9]|[12][0-9]|3[01])", device):
                raise Refused("invalid_device", f"{shown(device)} is no card's device", "use net0 to net31")
            if device in nics:
                raise Refused("duplicate_device", f"{device} is used twice", "give each card a device of its own")
            nics[device] = checked_nic(
                Nic(
                    device=device,
                    model=one_of(card.model, NIC_MODELS, "network card model"),
                    mac=None if card.mac is None else mac_address(card.mac),
                    bridge=None if card.bridge is None else bridge_name(card.bridge),
                    mtu=card.mtu,
                )
            )
    return tuple(nics.values())
