"""The whole command line of one QEMU process, built from dataclasses alone.

Source and target of a migration call this with the same definition and get the same machine; only paths, sockets and
`-incoming` differ. The guest always starts stopped: whoever may resume it does so by QMP. Pure: no file is looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from haulier.definition.model import Nic, Role, VmDefinition
from haulier.definition.storage import Image
from haulier.errors import Refused
from haulier.hypervisor.devices import DevicePlan, Drive, block_nodes, escaped, file_nodes, node_name, option

__all__ = ["Drive", "MachineSpec", "command_line", "node_name"]

_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_PINNED_MACHINE: Final = re.compile(r"pc-(i440fx|q35)-.+")
_FIRMWARE_NODE: Final = "drive-firmware"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """One QEMU process. The definition must be pinned: versioned machine type, CPU model and every card's MAC.

    `monitor_fds` are listening UNIX sockets that the caller opened and passes on; `network` isolated connects each card
    to a hub of its own that leads nowhere.
    """

    definition: VmDefinition
    program: str
    accel: Literal["tcg", "kvm"]
    ram_kib: int
    run_dir: Path
    log_dir: Path
    drives: tuple[Drive, ...]
    uuid: str
    tpm_socket: Path | None = None
    monitor_fds: tuple[int, ...] = ()
    incoming: bool = False
    network: Literal["bridge", "isolated"] = "isolated"
    firmware_code: Path | None = None


def command_line(machine: MachineSpec) -> list[str]:
    """Build the argument vector, the program first and the definition's own `args` last.

    Raises `Refused` when the spec is not fit to be started: not pinned, drives that are not the definition's, or a TPM
    state volume among them, which must never become a block node.
    """
    _check(machine)
    drives = sorted(machine.drives, key=lambda drive: drive.device)
    return [
        machine.program,
        *_process(machine),
        *_platform(machine),
        *_firmware(machine),
        *_monitors(machine),
        *_pairs("-blockdev", [node for drive in drives for node in block_nodes(drive)]),
        *_pairs("-netdev", [_network(machine, nic) for nic in machine.definition.nics]),
        *_pairs("-device", DevicePlan(machine.definition).lines(drives)),
        *_tpm(machine),
        *_serials(machine),
        *(["-incoming", "defer"] if machine.incoming else []),
        *machine.definition.args,
    ]


def _check(machine: MachineSpec) -> None:
    definition = machine.definition
    loose = [
        *(["machine"] if not _PINNED_MACHINE.fullmatch(definition.machine or "") else []),
        *(["cpu"] if not definition.cpu else []),
        *(nic.device for nic in definition.nics if nic.mac is None),
    ]
    if loose:
        raise Refused("not_pinned", f"not pinned: {', '.join(loose)}", "pin machine type, CPU model and MAC addresses")
    expected = sorted(spec.device for spec in definition.volumes if spec.is_opened)
    given = sorted(drive.device for drive in machine.drives)
    if never := {spec.device for spec in definition.volumes if not spec.is_opened}.intersection(given):
        raise Refused("not_a_drive", f"QEMU must never open {', '.join(sorted(never))}", "leave it out")
    if given != expected:
        raise Refused("drives_differ", f"drives {given} are given, the definition has {expected}", "give each one once")
    if any(drive.path is None and drive.role is not Role.CDROM for drive in machine.drives):
        raise Refused("drives_differ", "a drive without a file is no CD-ROM", "resolve every volume's path")
    if (definition.tpm_version is None) != (machine.tpm_socket is None):
        raise Refused("tpm_differs", "a TPM needs both a version and swtpm's socket", "give both or neither")
    if definition.firmware == "ovmf" and machine.firmware_code is None:
        raise Refused("no_firmware", "the firmware is ovmf, and no file with its code is given", "install OVMF")


def _pairs(flag: str, values: list[str]) -> list[str]:
    return [word for value in values for word in (flag, value)]


def _process(machine: MachineSpec) -> list[str]:
    name = escaped(machine.definition.name or "haulier")
    # The bridge helper is a set-uid program that QEMU starts, which the sandbox would forbid.
    sandbox = ["-sandbox", _SANDBOX] if machine.network == "isolated" else []
    return [
        *("-name", f"guest={name},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-S"),
        *("-display", "none"),
        *("-msg", "timestamp=on"),
        *("-pidfile", str(machine.run_dir / "qemu.pid")),
        *sandbox,
    ]


def _platform(machine: MachineSpec) -> list[str]:
    definition = machine.definition
    flash: dict[str, object] = {}
    if definition.firmware == "ovmf":
        variables = [drive.top_node for drive in machine.drives if drive.role is Role.EFIDISK]
        flash = dict(zip(("pflash0", "pflash1"), [_FIRMWARE_NODE, *variables], strict=False))
    cpus = definition.sockets * definition.cores
    return [
        *("-machine", option(str(definition.machine), {"usb": "off", **flash})),
        *("-accel", machine.accel),
        *("-cpu", str(definition.cpu)),
        *("-smp", f"{cpus},sockets={definition.sockets},cores={definition.cores},threads=1,maxcpus={cpus}"),
        *("-m", f"size={machine.ram_kib}K"),
        *("-uuid", machine.uuid),
        *("-rtc", "base=utc,clock=host"),
    ]


def _firmware(machine: MachineSpec) -> list[str]:
    if machine.definition.firmware != "ovmf" or machine.firmware_code is None:
        return []
    code = file_nodes(Image(machine.firmware_code), node_name=_FIRMWARE_NODE, read_only=True)
    return _pairs("-blockdev", code)


def _monitors(machine: MachineSpec) -> list[str]:
    words = []
    for index, fd in enumerate(machine.monitor_fds):
        words += ["-chardev", f"socket,id=mon{index},fd={fd},server=on,wait=off"]
        words += ["-mon", f"chardev=mon{index},mode=control"]
    return words


def _network(machine: MachineSpec, nic: Nic) -> str:
    if machine.network == "bridge" and nic.bridge:
        return option("bridge", {"id": nic.device, "br": nic.bridge})
    return option("hubport", {"id": nic.device, "hubid": nic.device.removeprefix("net")})


def _tpm(machine: MachineSpec) -> list[str]:
    if machine.tpm_socket is None:
        return []
    # A command response buffer exists only for TPM 2.0.
    model = "tpm-crb" if machine.definition.tpm_version == "v2.0" else "tpm-tis"
    return [
        *("-chardev", option("socket", {"id": "chrtpm", "path": machine.tpm_socket})),
        *("-tpmdev", "emulator,id=tpm0,chardev=chrtpm"),
        *("-device", f"{model},id=tpmdev0,tpmdev=tpm0"),
    ]


def _serials(machine: MachineSpec) -> list[str]:
    words = []
    for index, target in enumerate(machine.definition.serials):
        name = f"serial{index}"
        if target == "socket":
            listen = {"id": name, "path": machine.run_dir / f"{name}.sock", "server": "on", "wait": "off"}
            # Without logappend a restarted QEMU would begin the log anew.
            log = {"logfile": machine.log_dir / f"{name}.log", "logappend": "on"}
            words += ["-chardev", option("socket", {**listen, **log})]
        else:
            words += ["-chardev", option("serial", {"id": name, "path": target})]
        words += ["-device", f"isa-serial,id=com{index},chardev={name},index={index}"]
    return words
