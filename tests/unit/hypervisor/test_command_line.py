"""The argument vector: what is in it, in which order, and which specs are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.definition import Nic, Role, VmDefinition, VolumeSpec
from haulier.errors import Refused
from haulier.hypervisor.command_line import Drive, MachineSpec, command_line, node_name
from haulier.hypervisor.devices import DevicePlan

UUID = "7b10d7af-b932-4c66-b2c3-3996152ec465"
MAC = "BC:24:11:00:00:01"


def pinned(*volumes: VolumeSpec, **fields: Any) -> VmDefinition:
    usual = {"name": "web1", "machine": "pc-q35-7.2", "cpu": "qemu64"}
    return VmDefinition(**(usual | fields), volumes=volumes)


def drive(spec: VolumeSpec) -> Drive:
    path = None if spec.is_empty_drive else Path(f"/images/{spec.device}")
    return Drive(spec.device, spec.role, node_name(spec.device), path, spec.format, spec.read_only)


def machine(definition: VmDefinition, **fields: Any) -> MachineSpec:
    drives = tuple(drive(spec) for spec in definition.volumes if spec.role not in (Role.TPMSTATE, Role.UNUSED))
    usual: dict[str, Any] = {
        "definition": definition,
        "program": "qemu-system-x86_64",
        "accel": "tcg",
        "ram_kib": 262152,
        "run_dir": Path("/run/vm"),
        "log_dir": Path("/var/vm"),
        "drives": drives,
        "uuid": UUID,
    }
    return MachineSpec(**(usual | fields))


def values(argv: list[str], flag: str) -> list[str]:
    return [value for key, value in pairwise(argv) if key == flag]


def disk(device: str, **fields: Any) -> VolumeSpec:
    return VolumeSpec(device, Role.DISK, "local", f"{device}.raw", **fields)


def test_whole_vector() -> None:
    definition = pinned(
        disk("virtio0"),
        nics=(Nic("net0", "virtio-net-pci", MAC, "vmbr0", 1450),),
        serials=("socket",),
        args=("-kernel", "/boot/probe"),
        tpm_version="v2.0",
        cores=2,
    )
    argv = command_line(machine(definition, tpm_socket=Path("/run/vm/tpm"), monitor_fds=(7, 8), incoming=True))
    assert argv == [
        "qemu-system-x86_64",
        *("-name", "guest=web1,debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-S"),
        *("-display", "none"),
        *("-msg", "timestamp=on"),
        *("-pidfile", "/run/vm/qemu.pid"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", "pc-q35-7.2,usb=off"),
        *("-accel", "tcg"),
        *("-cpu", "qemu64"),
        *("-smp", "2,sockets=1,cores=2,threads=1,maxcpus=2"),
        *("-m", "size=262152K"),
        *("-uuid", UUID),
        *("-rtc", "base=utc,clock=host"),
        *("-chardev", "socket,id=mon0,fd=7,server=on,wait=off"),
        *("-mon", "chardev=mon0,mode=control"),
        *("-chardev", "socket,id=mon1,fd=8,server=on,wait=off"),
        *("-mon", "chardev=mon1,mode=control"),
        "-blockdev",
        '{"driver":"file","filename":"/images/virtio0","node-name":"file-virtio0",'
        '"cache":{"direct":false,"no-flush":false},"aio":"threads","discard":"unmap","locking":"auto",'
        '"read-only":false}',
        "-blockdev",
        '{"driver":"raw","node-name":"drive-virtio0","file":"file-virtio0","discard":"unmap","read-only":false}',
        *("-netdev", "hubport,id=net0,hubid=0"),
        "-device",
        "virtio-blk-pci,id=virtio0,bus=pcie.0,addr=0xa,disable-legacy=off,disable-modern=off,drive=drive-virtio0",
        "-device",
        f"virtio-net-pci,id=net0,netdev=net0,mac={MAC},bus=pcie.0,addr=0x12,romfile=,"
        "disable-legacy=off,disable-modern=off,host_mtu=1450",
        *("-chardev", "socket,id=chrtpm,path=/run/vm/tpm"),
        *("-tpmdev", "emulator,id=tpm0,chardev=chrtpm"),
        *("-device", "tpm-crb,id=tpmdev0,tpmdev=tpm0"),
        "-chardev",
        "socket,id=serial0,path=/run/vm/serial0.sock,server=on,wait=off,logfile=/var/vm/serial0.log,logappend=on",
        *("-device", "isa-serial,id=com0,chardev=serial0,index=0"),
        *("-incoming", "defer"),
        *("-kernel", "/boot/probe"),
    ]


def test_only_incoming_differs_between_the_two_sides() -> None:
    definition = pinned(disk("scsi0"), args=("-no-hpet",))
    source = command_line(machine(definition))
    target = command_line(machine(definition, incoming=True))
    assert target == [*source[:-1], "-incoming", "defer", "-no-hpet"]


def test_bridges_need_the_helper_and_so_no_sandbox() -> None:
    definition = pinned(nics=(Nic("net0", "e1000", MAC, "vmbr0"), Nic("net1", "e1000", MAC)))
    argv = command_line(machine(definition, network="bridge"))
    assert values(argv, "-netdev") == ["bridge,id=net0,br=vmbr0", "hubport,id=net1,hubid=1"]
    assert "-sandbox" not in argv


def test_uefi_flash() -> None:
    definition = pinned(VolumeSpec("efidisk0", Role.EFIDISK, "local", "e.raw"), firmware="ovmf")
    argv = command_line(machine(definition, firmware_code=Path("/fw.fd")))
    assert values(argv, "-machine") == ["pc-q35-7.2,usb=off,pflash0=drive-firmware,pflash1=drive-efidisk0"]
    nodes = {node["node-name"]: node for node in map(json.loads, values(argv, "-blockdev"))}
    assert set(nodes) == {"file-firmware", "drive-firmware", "file-efidisk0", "drive-efidisk0"}
    assert nodes["drive-firmware"]["read-only"] and not nodes["drive-efidisk0"]["read-only"]
    assert values(argv, "-device") == []


def test_efidisk_without_uefi_is_a_node_that_can_migrate() -> None:
    argv = command_line(machine(pinned(VolumeSpec("efidisk0", Role.EFIDISK, "local", "e.raw"))))
    assert values(argv, "-machine") == ["pc-q35-7.2,usb=off"]
    assert len(values(argv, "-blockdev")) == 2


@pytest.mark.parametrize(
    ("type_", "controller", "device", "expected"),
    [
        ("pc-q35-7.2", "virtio-scsi-pci", "ide3", ["ide-hd,id=ide3,bus=ide.3,unit=0,drive=drive-ide3"]),
        ("pc-i440fx-7.2", "virtio-scsi-pci", "ide3", ["ide-hd,id=ide3,bus=ide.1,unit=1,drive=drive-ide3"]),
        (
            "pc-i440fx-7.2",
            "virtio-scsi-pci",
            "sata5",
            ["ahci,id=ahci0,bus=pci.0,addr=0x7", "ide-hd,id=sata5,bus=ahci0.5,drive=drive-sata5"],
        ),
        (
            "pc-i440fx-7.2",
            "pvscsi",
            "scsi9",
            ["pvscsi,id=scsihw0,bus=pci.0,addr=0x5", "scsi-hd,id=scsi9,bus=scsihw0.0,scsi-id=9,drive=drive-scsi9"],
        ),
        (
            "pc-q35-7.2",
            "lsi53c895a",
            "scsi8",
            [
                "lsi53c895a,id=scsihw1,bus=pcie.0,addr=0x6",
                "scsi-hd,id=scsi8,bus=scsihw1.0,scsi-id=1,drive=drive-scsi8",
            ],
        ),
        (
            "pc-q35-7.2",
            "virtio-scsi-single",
            "scsi8",
            [
                "pci-bridge,id=pci.3,chassis_nr=3,bus=pcie.0,addr=0x1e",
                "virtio-scsi-pci,id=virtioscsi8,bus=pci.3,addr=0x9,disable-legacy=off,disable-modern=off",
                "scsi-hd,id=scsi8,bus=virtioscsi8.0,channel=0,scsi-id=0,lun=8,drive=drive-scsi8",
            ],
        ),
    ],
)
def test_place_of_a_disk(type_: str, controller: str, device: str, expected: list[str]) -> None:
    definition = pinned(disk(device), machine=type_, scsi_controller=controller)
    assert values(command_line(machine(definition)), "-device") == expected


def test_optical_drives() -> None:
    definition = pinned(
        VolumeSpec("ide2", Role.CDROM, read_only=True),
        VolumeSpec("sata0", Role.CLOUDINIT, "local", "c.raw", read_only=True),
    )
    argv = command_line(machine(definition))
    assert values(argv, "-device")[1:] == [
        "ide-cd,id=ide2,bus=ide.2,unit=0",
        "ide-cd,id=sata0,bus=ahci0.0,drive=drive-sata0",
    ]
    assert all(json.loads(node)["read-only"] for node in values(argv, "-blockdev"))


def test_boot_order_and_serial_number() -> None:
    nics = (Nic("net0", "e1000", MAC), Nic("net1", "e1000", MAC))
    definition = pinned(disk("scsi0", options={"serial": "a,b"}), nics=nics, boot="order=net1;scsi0;net0;gone9")
    _, scsi, net0, net1 = values(command_line(machine(definition)), "-device")
    assert scsi.endswith("serial=a,,b,bootindex=101")
    assert net0.endswith("romfile=,bootindex=102")
    assert net1.endswith("addr=0x13,bootindex=100")  # boots from the network first, so it keeps its ROM


def test_commas_are_escaped() -> None:
    argv = command_line(machine(pinned(name="a,b", serials=("socket",)), run_dir=Path("/run/a,b")))
    assert values(argv, "-name") == ["guest=a,,b,debug-threads=on"]
    assert "path=/run/a,,b/serial0.sock" in values(argv, "-chardev")[0]


def test_serial_of_the_host_and_old_tpm() -> None:
    definition = pinned(serials=("/dev/ttyS0",), tpm_version="v1.2")
    argv = command_line(machine(definition, tpm_socket=Path("/t")))
    assert "serial,id=serial0,path=/dev/ttyS0" in argv
    assert "tpm-tis,id=tpmdev0,tpmdev=tpm0" in argv


TPMSTATE = VolumeSpec("tpmstate0", Role.TPMSTATE, "local", "t.raw")


def test_unused_and_tpmstate_volumes_never_appear() -> None:
    definition = pinned(TPMSTATE, VolumeSpec("unused0", Role.UNUSED, "local", "u.raw"), tpm_version="v2.0")
    argv = command_line(machine(definition, tpm_socket=Path("/t")))
    assert values(argv, "-blockdev") == []


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (machine(pinned(machine="q35")), "not_pinned"),
        (machine(pinned(machine=None)), "not_pinned"),
        (machine(pinned(cpu=None)), "not_pinned"),
        (machine(pinned(nics=(Nic("net0", "e1000", None),))), "not_pinned"),
        (machine(pinned(TPMSTATE), drives=(drive(TPMSTATE),)), "not_a_drive"),
        (machine(pinned(disk("scsi0")), drives=()), "drives_differ"),
        (machine(pinned(), drives=(drive(disk("scsi0")),)), "drives_differ"),
        (
            machine(pinned(disk("scsi0")), drives=(replace(drive(disk("scsi0")), path=None),)),
            "drives_differ",
        ),
        (machine(pinned(tpm_version="v2.0")), "tpm_differs"),
        (machine(pinned(), tpm_socket=Path("/t")), "tpm_differs"),
        (machine(pinned(firmware="ovmf")), "no_firmware"),
    ],
)
def test_refusals(spec: MachineSpec, code: str) -> None:
    with pytest.raises(Refused) as caught:
        command_line(spec)
    assert caught.value.code == code
    assert caught.value.problem.hint


DEVICES = [
    *(f"{bus}{n}" for bus, count in (("ide", 4), ("sata", 6), ("scsi", 31), ("virtio", 16)) for n in range(count))
]
CONTROLLERS = ["virtio-scsi-pci", "virtio-scsi-single", "lsi53c895a", "lsi53c810", "megasas", "pvscsi"]


def lines(devices: list[str], cards: list[int], **fields: Any) -> list[str]:
    nics = tuple(Nic(f"net{n}", "virtio-net-pci", MAC) for n in cards)
    definition = pinned(*map(disk, devices), nics=nics, **fields)
    return DevicePlan(definition).lines([drive(spec) for spec in definition.volumes])


def place(line: str) -> tuple[str, ...]:
    keys = ("bus=", "addr=", "scsi-id=", "lun=", "unit=")
    return tuple(part for part in line.split(",") if part.startswith(keys))


@given(
    devices=st.lists(st.sampled_from(DEVICES), unique=True, max_size=20),
    cards=st.lists(st.integers(0, 31), unique=True, max_size=8),
    type_=st.sampled_from(["pc-q35-7.2", "pc-i440fx-7.2"]),
    controller=st.sampled_from(CONTROLLERS),
    data=st.data(),
)
def test_every_device_has_one_stable_place(
    *, devices: list[str], cards: list[int], type_: str, controller: str, data: st.DataObject
) -> None:
    fields = {"machine": type_, "scsi_controller": controller}
    plan = lines(devices, cards, **fields)
    places = [place(line) for line in plan]
    assert len(set(places)) == len(places)
    assert all(places)
    # Neither the order of the definition's parts nor parts that come later move a device.
    assert lines(data.draw(st.permutations(devices)), data.draw(st.permutations(cards)), **fields) == plan
    everything = set(lines(DEVICES, list(range(32)), **fields))
    assert set(plan) <= everything
