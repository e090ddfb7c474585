"""The values of a Proxmox VE guest file: property strings and what they say about volumes, cards, CPU and boot order.

Knows nothing of lines or files: each function takes one value's text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Final

from haulier.definition.model import Nic, Role, VolumeSpec
from haulier.definition.values import (
    EFIDISK_2M_BYTES,
    EFIDISK_BYTES,
    NIC_MODELS,
    TPMSTATE_BYTES,
    bridge_name,
    checked_nic,
    checked_volume,
    clean_text,
    host_path,
    invalid,
    mac_address,
    one_of,
    shown,
    size_in_bytes,
    storage_name,
    volume_format,
    volume_name,
    whole_number,
)
from haulier.errors import Refused

_V2 = "+popcnt,+pni,+sse4.1,+sse4.2,+ssse3"
_V3 = f"+aes,{_V2},+avx,+avx2,+bmi1,+bmi2,+f16c,+fma,+abm,+movbe,+xsave"
_V4 = f"{_V3},+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"
# CPU types that only Proxmox VE knows, in the words of QEMU (PVE::QemuServer::CPUConfig, qemu-server 9.2.6).
_CPU_TYPES: Final = {
    "x86-64-v2": f"qemu64,{_V2}",
    "x86-64-v2-AES": f"qemu64,+aes,{_V2}",
    "x86-64-v3": f"qemu64,{_V3}",
    "x86-64-v4": f"qemu64,{_V4}",
    "Icelake-Client": "Icelake-Server",
    "Icelake-Client-noTSX": "Icelake-Server-noTSX",
}

_PROPERTY = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)=(.*)", re.DOTALL)
_CLOUDINIT = re.compile(r"cloudinit|(?:.*/)?vm-[0-9]+-cloudinit(?:\.[a-z0-9]+)?")
# A linked clone names its base first: 9000/base-9000-disk-0.qcow2/100/vm-100-disk-0.qcow2
_CLONE = re.compile(r"((?:[0-9]+/)?base-[^/]+)/((?:[0-9]+/)?vm-[^/]+)")
_NEW_VOLUME = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?")


def properties(text: str, *, default_key: str) -> dict[str, str]:
    """Take a property string (`value,key=value,...`) apart; the first item may leave out its key."""
    found: dict[str, str] = {}
    for position, item in enumerate(text.split(",")):
        match = _PROPERTY.fullmatch(item)
        key, value = match.groups() if match else (default_key, item)
        if (not match and (position or not value)) or key in found:
            raise invalid("list of key=value", text, f"look at {shown(item)}")
        found[key] = value if key == default_key else clean_text(value)
    return found


def volume(device: str, text: str) -> VolumeSpec:
    """Read one volume line: `storage:name`, `storage:4` (make one of 4 GiB), an absolute path, or an empty drive."""
    options = properties(text, default_key="file")
    place = options.pop("file", None) or options.pop("volume", "none")
    is_cdrom = options.pop("media", "disk") == "cdrom"
    if place in ("none", "cdrom"):
        spec = VolumeSpec(device, Role.CDROM, name="/dev/cdrom" if place == "cdrom" else None, read_only=True)
        return checked_volume(spec if is_cdrom or place == "cdrom" else VolumeSpec(device, Role.DISK))
    storage, name, size = _place(place)
    if base := _CLONE.fullmatch(name or ""):
        options["base"], name = base.groups()
    role = _role(device, place.rpartition(":")[2], is_cdrom=is_cdrom)
    fixed = role in (Role.TPMSTATE, Role.EFIDISK)
    given = size_in_bytes(options.pop("size")) if "size" in options else None if fixed else size
    return checked_volume(
        VolumeSpec(
            device=device,
            role=role,
            storage=storage,
            name=name,
            format=volume_format(options.pop("format", None), name),
            size_bytes=given or usual_size(role, options),
            read_only=_is_on(options.pop("ro", "0")) or role in (Role.CDROM, Role.CLOUDINIT),
            options={key: value for key, value in options.items() if key != "version"},
        )
    )


def _place(place: str) -> tuple[str | None, str | None, int | None]:
    """Storage, name and size in bytes that the first part of a volume line says."""
    if place.startswith("/"):
        return None, host_path(place), None
    storage, colon, name = place.partition(":")
    if not colon:
        raise invalid("volume", place, "write storage:name, storage:4 for a new one of 4 GiB, or an absolute path")
    storage = storage_name(storage)
    if name == "cloudinit":
        return storage, None, None
    if _NEW_VOLUME.fullmatch(name):
        return storage, None, size_in_bytes(name, default_unit="G") if float(name) else None
    return storage, volume_name(name), None


def _role(device: str, name: str, *, is_cdrom: bool) -> Role:
    for prefix, role in (
        ("efidisk", Role.EFIDISK),
        ("tpmstate", Role.TPMSTATE),
        ("unused", Role.UNUSED),
        ("vmstate", Role.VMSTATE),
    ):
        if device.startswith(prefix):
            return role
    if _CLOUDINIT.fullmatch(name):
        return Role.CLOUDINIT
    return Role.CDROM if is_cdrom else Role.DISK


def usual_size(role: Role, options: dict[str, str]) -> int | None:
    """The size in bytes of what has one by its nature: a firmware's variables, a TPM's state."""
    if role is Role.EFIDISK:
        return EFIDISK_2M_BYTES if options.get("efitype") == "2m" else EFIDISK_BYTES
    return TPMSTATE_BYTES if role is Role.TPMSTATE else None


def _is_on(text: str) -> bool:
    return text.lower() in ("1", "on", "yes", "true")


def tpm_version(text: str) -> str:
    """The version on a `tpmstate0` line; v2.0 when the line does not say.

    Proxmox VE took v1.2 then for long; a state of that version is noticed at the start and refused.
    """
    version = properties(text, default_key="file").get("version", "v2.0")
    return one_of(version, {"v1.2": "v1.2", "v2.0": "v2.0"}, "TPM version")


def nic(device: str, text: str) -> Nic:
    """Read one card: `virtio=MAC,bridge=vmbr0,...` or `model=virtio,macaddr=MAC,...`."""
    options = properties(text, default_key="model")
    for model in NIC_MODELS.keys() & options.keys():
        options |= {"model": model, "macaddr": options.pop(model)}
    mtu = options.pop("mtu", None)
    if mtu == "1":  # "as large as the bridge's": only the host can tell, so whoever pins the card resolves it
        options["mtu"], mtu = mtu, None
    mac, bridge = options.pop("macaddr", None), options.pop("bridge", None)
    return checked_nic(
        Nic(
            device=device,
            model=one_of(options.pop("model", "none"), NIC_MODELS, "network card model"),
            mac=mac_address(mac) if mac else None,
            bridge=bridge_name(bridge) if bridge else None,
            mtu=whole_number(mtu, low=68, high=65520) if mtu else None,
            options=options,
        )
    )


def cpu(text: str) -> tuple[str, dict[str, str]]:
    """QEMU's `-cpu` value for a `cpu:` line, and what of the line has no place in it."""
    rest = properties(text, default_key="cputype")
    model = rest.pop("cputype", "kvm64")
    if model.startswith("custom-") or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", model):
        raise Refused(
            "unsupported_cpu", f"CPU type {shown(model)} is not known here", "use one of QEMU's own CPU models"
        )
    flags = [flag for flag in rest.pop("flags", "").split(";") if flag]
    for flag in flags:
        if not re.fullmatch(r"[+-][A-Za-z0-9._-]+", flag):
            raise invalid("CPU flag", flag, "write + or - and the flag's name")
    if "+nested-virt" in flags:  # not a flag of QEMU's: it means vmx or svm, whichever the host has
        flags.remove("+nested-virt")
        rest["nested-virt"] = "1"
    if _is_on(rest.pop("hidden", "0")):
        flags.append("kvm=off")
    return ",".join([_CPU_TYPES.get(model, model), *flags]), rest


def arguments(text: str) -> tuple[str, ...]:
    """Split `args:` as a shell would."""
    try:
        return tuple(shlex.split(clean_text(text)))
    except ValueError as error:
        raise Refused("invalid_args", f"args cannot be split: {error}", "close every quote") from error


def boot_order(text: str, *, bootdisk: str | None, volumes: Sequence[VolumeSpec], nics: Sequence[Nic]) -> str | None:
    """The boot order as `order=a;b;c`; the old letters (`cdn` with `bootdisk:`) are translated."""
    options = properties(text, default_key="legacy") if text else {}
    if "order" in options or "legacy" not in options:
        return f"order={options['order']}" if "order" in options else None
    disks = [bootdisk] if bootdisk else [spec.device for spec in volumes if spec.role is Role.DISK][:1]
    by_letter = {
        "c": disks,
        "d": [spec.device for spec in volumes if spec.role is Role.CDROM],
        "n": [card.device for card in nics],
    }
    if not re.fullmatch(r"[acdn]{1,4}", options["legacy"]):
        raise invalid("boot order", text, "write order=scsi0;ide2;net0")
    order = [device for letter in dict.fromkeys(options["legacy"]) for device in by_letter.get(letter, [])]
    return f"order={';'.join(order)}" if order else None
