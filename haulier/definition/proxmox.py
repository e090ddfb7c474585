"""Read a Proxmox VE guest file (`/etc/pve/qemu-server/<vmid>.conf`) into a definition.

Only the main section describes the VM. Pending changes and snapshots, and every key that has no meaning here, are kept
word for word under `ignored`, so that they can be reported and are never lost; volumes that only they refer to are the
VM's, too (sections.py). Pure: text in, definition out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from haulier.definition import proxmox_values as values
from haulier.definition.model import Nic, VmDefinition, VolumeSpec
from haulier.definition.sections import section_volumes
from haulier.definition.values import (
    NIC_LIMIT,
    SCSI_CONTROLLERS,
    SERIAL_LIMIT,
    Reasons,
    clean_text,
    guest_uuid,
    machine_type,
    one_of,
    serial_target,
    shown,
    split_device,
    vm_name,
    whole_number,
)
from haulier.errors import Problem, Refused

_SECTION = re.compile(r"\[([^\]\x00-\x1f\x7f]*)\]\s*")
_ENTRY = re.compile(r"([a-z][a-z_-]*[0-9]*):\s*(.*?)\s*", re.DOTALL)
_INDEXED = re.compile(r"([a-z]+)(0|[1-9][0-9]{0,2})")
_MEMORY_LIMIT_MIB: Final = 64 * 1024 * 1024
_UNUSED_LIMIT: Final = 256


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    text: str


@dataclass(slots=True)
class _Draft:
    """A definition in the making: what the lines read so far have said."""

    fields: dict[str, Any] = field(default_factory=dict)
    volumes: list[VolumeSpec] = field(default_factory=list)
    nics: dict[int, Nic] = field(default_factory=dict)
    serials: dict[int, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    bootdisk: str | None = None
    boot: str | None = None


def read_proxmox(text: str, *, source: str) -> VmDefinition:
    """Read the text of a `<vmid>.conf`; `source` is the name that error messages show.

    Raises `Refused` with every fault of the text at once, each with its line number; `not_a_config` when the text is
    something else altogether.
    """
    main, sections = _split_sections(text)
    reasons = Reasons()
    entries = _entries(main, source=source, reasons=reasons)
    if not any(_handler(key) or key in _TELLTALES for key in entries):
        raise Refused(
            "not_a_config",
            f"{source}:1: this is no Proxmox VE guest file: not one of its keys was found",
            "give a <vmid>.conf from /etc/pve/qemu-server, or a TOML file",
        )
    draft = _Draft()
    for key, (number, value) in entries.items():
        with reasons.at(f"{source}:{number}: {key}"):
            (_handler(key) or _ignore)(draft, key, value)
    if draft.boot is not None:  # comes last, because the old letters mean devices of other lines
        with reasons.at(f"{source}:{entries['boot'][0]}: boot"):
            _add_boot(draft, draft.boot)
    _add_sections(draft, sections, source=source, reasons=reasons)
    reasons.raise_any()
    return _definition(draft)


def _definition(draft: _Draft) -> VmDefinition:
    # Proxmox VE's own defaults, where they differ from the model's: a guest without `scsihw:` sees an LSI controller.
    usual: dict[str, Any] = {"name": None, "scsi_controller": SCSI_CONTROLLERS["lsi"]}
    return VmDefinition(
        **(usual | draft.fields),
        volumes=tuple(draft.volumes),
        nics=tuple(draft.nics[index] for index in sorted(draft.nics)),
        serials=tuple(draft.serials[index] for index in sorted(draft.serials)),
        ignored=draft.ignored,
    )


def _split_sections(text: str) -> tuple[list[_Line], dict[str, list[_Line]]]:
    """The lines of the main section, and those of every other section under its header."""
    main: list[_Line] = []
    sections: dict[str, list[_Line]] = {}
    current = main
    # Not splitlines(): it would also cut at characters that Proxmox VE takes as part of a line.
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = raw.removesuffix("\r")
        if header := _SECTION.fullmatch(line):
            current = sections.setdefault(f"[{header.group(1)}]", [])
        elif line.strip():
            current.append(_Line(number, line))
    return main, sections


def _entries(lines: list[_Line], *, source: str, reasons: Reasons) -> dict[str, tuple[int, str]]:
    """Key to line number and value; lines that are neither entry nor comment become reasons."""
    entries: dict[str, tuple[int, str]] = {}
    for line in lines:
        if line.text.startswith("#"):
            continue
        match = _ENTRY.fullmatch(line.text)
        place = f"{source}:{line.number}"
        if not match:
            hint = "write key: value"
            reasons.problems.append(Problem("invalid_line", f"{place}: {shown(line.text)} is no entry", hint))
            continue
        key, value = match.groups()
        key = "ide2" if key == "cdrom" else key
        if key in entries:
            message = f"{place}: {key} was already given in line {entries[key][0]}"
            reasons.problems.append(Problem("duplicate_key", message, "keep one of the two lines"))
        entries.setdefault(key, (line.number, value))
    return entries


# --- one function per kind of line; each may refuse -------------------------------------------------------------------

# Keys that mean nothing here, but tell a guest file from some other text.
_TELLTALES: Final = frozenset(
    ("agent", "balloon", "hotplug", "meta", "numa", "onboot", "ostype", "startdate", "vcpus", "vga", "vmgenid")
)

_Handler = Callable[[_Draft, str, str], None]


def _plain(name: str, read: Callable[[str], object]) -> _Handler:
    def handle(draft: _Draft, key: str, value: str) -> None:
        draft.fields[name] = read(value)

    return handle


def _memory(draft: _Draft, key: str, value: str) -> None:
    amount = values.properties(value, default_key="current").get("current", "512")
    draft.fields["memory_mib"] = whole_number(amount, low=16, high=_MEMORY_LIMIT_MIB)


def _machine(draft: _Draft, key: str, value: str) -> None:
    options = values.properties(value, default_key="type")
    draft.fields["machine"] = machine_type(options.pop("type", "pc"))
    draft.ignored |= {f"machine.{name}": setting for name, setting in options.items()}


def _cpu(draft: _Draft, key: str, value: str) -> None:
    draft.fields["cpu"], rest = values.cpu(value)
    draft.ignored |= {f"cpu.{name}": setting for name, setting in rest.items()}


def _arch(draft: _Draft, key: str, value: str) -> None:
    if value != "x86_64":
        raise Refused("unsupported_machine", f"architecture {shown(value)}", "only x86_64 guests are supported")


def _smbios(draft: _Draft, key: str, value: str) -> None:
    options = values.properties(value, default_key="uuid")
    if "uuid" in options:
        draft.fields["uuid"] = guest_uuid(options.pop("uuid"))
    if options:
        draft.ignored[key] = ",".join(f"{name}={setting}" for name, setting in options.items())


def _boot(draft: _Draft, key: str, value: str) -> None:
    draft.boot = value


def _bootdisk(draft: _Draft, key: str, value: str) -> None:
    split_device(value)
    draft.bootdisk = value


def _tpmstate(draft: _Draft, key: str, value: str) -> None:
    draft.fields["tpm_version"] = values.tpm_version(value)
    _volume(draft, key, value)


def _volume(draft: _Draft, key: str, value: str) -> None:
    draft.volumes.append(values.volume(key, value))


def _nic(draft: _Draft, key: str, value: str) -> None:
    draft.nics[_index(key, "net", NIC_LIMIT)] = values.nic(key, value)


def _serial(draft: _Draft, key: str, value: str) -> None:
    draft.serials[_index(key, "serial", SERIAL_LIMIT)] = serial_target(value)


def _disk(draft: _Draft, key: str, value: str) -> None:
    split_device(key)
    _volume(draft, key, value)


def _unused(draft: _Draft, key: str, value: str) -> None:
    _index(key, "unused", _UNUSED_LIMIT)
    _volume(draft, key, value)


def _ignore(draft: _Draft, key: str, value: str) -> None:
    draft.ignored[key] = clean_text(value)


def _index(key: str, prefix: str, limit: int) -> int:
    index = key.removeprefix(prefix)
    if not re.fullmatch(r"0|[1-9][0-9]{0,2}", index) or int(index) >= limit:
        raise Refused("invalid_device", f"{shown(key)} is out of range", f"use {prefix}0 to {prefix}{limit - 1}")
    return int(index)


def _tags(value: str) -> tuple[str, ...]:
    return tuple(tag for tag in re.split(r"[;,\s]+", clean_text(value)) if tag)


_EXACT: Final[dict[str, _Handler]] = {
    "name": _plain("name", vm_name),
    "memory": _memory,
    "cores": _plain("cores", lambda value: whole_number(value, low=1, high=1024)),
    "sockets": _plain("sockets", lambda value: whole_number(value, low=1, high=64)),
    "cpu": _cpu,
    "machine": _machine,
    "bios": _plain("firmware", lambda value: one_of(value, {"seabios": "seabios", "ovmf": "ovmf"}, "firmware")),
    "scsihw": _plain("scsi_controller", lambda value: one_of(value, SCSI_CONTROLLERS, "SCSI controller")),
    "args": _plain("args", values.arguments),
    "tags": _plain("tags", _tags),
    "arch": _arch,
    "smbios1": _smbios,
    "boot": _boot,
    "bootdisk": _bootdisk,
    "efidisk0": _volume,
    "tpmstate0": _tpmstate,
    "vmstate": _volume,
}
_BY_PREFIX: Final[dict[str, _Handler]] = {
    "scsi": _disk,
    "virtio": _disk,
    "sata": _disk,
    "ide": _disk,
    "net": _nic,
    "serial": _serial,
    "unused": _unused,
}


def _handler(key: str) -> _Handler | None:
    return _EXACT.get(key) or _BY_PREFIX.get(key.rstrip("0123456789") if key[-1:].isdigit() else "")


def _add_boot(draft: _Draft, value: str) -> None:
    cards = [draft.nics[index] for index in sorted(draft.nics)]
    draft.fields["boot"] = values.boot_order(value, bootdisk=draft.bootdisk, volumes=draft.volumes, nics=cards)


def _add_sections(draft: _Draft, sections: dict[str, list[_Line]], *, source: str, reasons: Reasons) -> None:
    known = {(spec.storage, spec.name) for spec in draft.volumes if spec.name is not None}
    for header, lines in sections.items():
        for line in lines:
            with reasons.at(f"{source}:{line.number}: {header}"):
                draft.volumes += section_volumes(header, [clean_text(line.text)], known=known)
        draft.ignored[header] = "\n".join(line.text for line in lines)
