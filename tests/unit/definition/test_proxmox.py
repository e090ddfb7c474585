"""Proxmox VE guest files: what each kind of line means, and that no text at all makes the reader fall over."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.definition import Nic, Role, VmDefinition, VolumeSpec, read_proxmox
from haulier.errors import Refused

WHOLE = """\
# A web server%3A handle with care
agent: 1
args: -kernel /boot/probe -append 'console=ttyS0 quiet'
bios: ovmf
boot: order=scsi0;ide2;net0
cores: 2
cpu: x86-64-v2-AES,flags=+pcid;-md-clear,hidden=1
efidisk0: local:100/vm-100-disk-1.qcow2,efitype=4m,pre-enrolled-keys=1,size=528K
ide0: local:100/vm-100-cloudinit.qcow2,media=cdrom,size=4M
ide2: none,media=cdrom
machine: pc-q35-7.2+pve0,viommu=intel
memory: 2048
name: web1
net0: virtio=bc:24:11:2e:00:01,bridge=vmbr0,firewall=1,mtu=1450
net1: model=e1000,macaddr=BC:24:11:2E:00:02,bridge=vmbr1
numa: 0
scsi0: local:100/vm-100-disk-0.qcow2,discard=on,iothread=1,size=32G
scsihw: virtio-scsi-single
serial0: socket
smbios1: uuid=7B10D7AF-b932-4c66-b2c3-3996152ec465,manufacturer=QQ==,base64=1
sockets: 2
tags: web;prod
tpmstate0: local:100/vm-100-disk-2.raw,size=4M,version=v2.0
unused0: local:100/vm-100-disk-9.raw
virtio3: /dev/disk/by-id/x,size=1T

[PENDING]
memory: 4096

[before]
memory: 1024
vmstate: local:100/vm-100-state-before.raw
"""


def read(text: str) -> VmDefinition:
    return read_proxmox(text, source="100.conf")


def refused(text: str) -> Refused:
    with pytest.raises(Refused) as caught:
        read(text)
    assert all("\n" not in problem.message for problem in caught.value.problems)
    return caught.value


def volume(line: str) -> VolumeSpec:
    (spec,) = read(line).volumes
    return spec


def test_whole_file() -> None:
    vm = read(WHOLE)
    assert (vm.name, vm.memory_mib, vm.cores, vm.sockets, vm.firmware) == ("web1", 2048, 2, 2, "ovmf")
    assert vm.machine == "pc-q35-7.2"
    assert vm.cpu == "qemu64,+aes,+popcnt,+pni,+sse4.1,+sse4.2,+ssse3,+pcid,-md-clear,kvm=off"
    assert vm.args == ("-kernel", "/boot/probe", "-append", "console=ttyS0 quiet")
    assert vm.uuid == "7b10d7af-b932-4c66-b2c3-3996152ec465"
    assert (vm.tpm_version, vm.scsi_controller, vm.serials) == ("v2.0", "virtio-scsi-single", ("socket",))
    assert (vm.boot, vm.tags) == ("order=scsi0;ide2;net0", ("web", "prod"))
    assert [(spec.device, spec.role) for spec in vm.volumes] == [
        ("efidisk0", Role.EFIDISK),
        ("ide0", Role.CLOUDINIT),
        ("ide2", Role.CDROM),
        ("scsi0", Role.DISK),
        ("tpmstate0", Role.TPMSTATE),
        ("unused0", Role.UNUSED),
        ("virtio3", Role.DISK),
        ("before.vmstate", Role.VMSTATE),
    ]
    assert vm.nics == (
        Nic("net0", "virtio-net-pci", "BC:24:11:2E:00:01", "vmbr0", 1450, {"firewall": "1"}),
        Nic("net1", "e1000", "BC:24:11:2E:00:02", "vmbr1"),
    )
    assert vm.ignored == {
        "agent": "1",
        "numa": "0",
        "machine.viommu": "intel",
        "smbios1": "manufacturer=QQ==,base64=1",
        "[PENDING]": "memory: 4096",
        "[before]": "memory: 1024\nvmstate: local:100/vm-100-state-before.raw",
    }


def test_definition_survives_json() -> None:
    vm = read(WHOLE)
    assert VmDefinition.from_dict(json.loads(json.dumps(vm.as_dict()))) == vm


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "scsi1: local:sub/vm-1-disk-0.raw",
            VolumeSpec("scsi1", Role.DISK, "local", "sub/vm-1-disk-0.raw"),
        ),
        (
            "scsi1: local:1/vm-1-disk-0.qcow2,size=1.5G,ro=1",
            VolumeSpec("scsi1", Role.DISK, "local", "1/vm-1-disk-0.qcow2", "qcow2", 1610612736, True),
        ),
        ("virtio0: thin:vm-1-disk-0", VolumeSpec("virtio0", Role.DISK, "thin", "vm-1-disk-0")),
        ("virtio0: local:4", VolumeSpec("virtio0", Role.DISK, "local", None, "raw", 4 * 1024**3)),
        ("virtio0: local:0.5,format=qcow2", VolumeSpec("virtio0", Role.DISK, "local", None, "qcow2", 512 * 1024**2)),
        ("sata0: /srv/a=b.img", VolumeSpec("sata0", Role.DISK, None, "/srv/a=b.img")),
        ("virtio0: file=local:x.raw,size=8M", VolumeSpec("virtio0", Role.DISK, "local", "x.raw", "raw", 8 * 1024**2)),
        ("ide2: none,media=cdrom", VolumeSpec("ide2", Role.CDROM, read_only=True)),
        ("ide2: cdrom,media=cdrom", VolumeSpec("ide2", Role.CDROM, None, "/dev/cdrom", read_only=True)),
        ("cdrom: none,media=cdrom", VolumeSpec("ide2", Role.CDROM, read_only=True)),
        (
            "ide2: local:iso/debian.iso,media=cdrom,size=364K",
            VolumeSpec("ide2", Role.CDROM, "local", "iso/debian.iso", "raw", 364 * 1024, True),
        ),
        (
            "scsi9: local:vm-1-cloudinit,media=cdrom",
            VolumeSpec("scsi9", Role.CLOUDINIT, "local", "vm-1-cloudinit", read_only=True),
        ),
        ("ide2: local:cloudinit", VolumeSpec("ide2", Role.CLOUDINIT, "local", None, read_only=True)),
        (
            "scsi0: local:9/base-9-disk-0.qcow2/1/vm-1-disk-0.qcow2",
            VolumeSpec(
                *("scsi0", Role.DISK, "local", "1/vm-1-disk-0.qcow2", "qcow2"),
                options={"base": "9/base-9-disk-0.qcow2"},
            ),
        ),
        ("tpmstate0: local:1/t.raw", VolumeSpec("tpmstate0", Role.TPMSTATE, "local", "1/t.raw", "raw", 4194304)),
        ("tpmstate0: local:1", VolumeSpec("tpmstate0", Role.TPMSTATE, "local", None, "raw", 4194304)),
        ("efidisk0: local:1/e.raw", VolumeSpec("efidisk0", Role.EFIDISK, "local", "1/e.raw", "raw", 540672)),
        ("vmstate: local:1/s.raw", VolumeSpec("vmstate", Role.VMSTATE, "local", "1/s.raw")),
    ],
)
def test_volume_line(line: str, expected: VolumeSpec) -> None:
    assert volume(line) == expected


@pytest.mark.parametrize(
    "name", ["../x.raw", "1/../../x.raw", "/etc/shadow", "1//x", "1/./x", "..", "a\0b.raw", "1/..", "x/"]
)
def test_volume_may_not_leave_its_storage(name: str) -> None:
    assert refused(f"scsi0: local:{name}").code == "volume_path_outside_storage"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("memory: lots", "invalid_value"),
        ("memory: 0", "invalid_value"),
        ("memory: " + "9" * 5000, "invalid_value"),
        ("cores: ٣", "invalid_value"),
        ("name: ../../etc", "invalid_value"),
        ("bios: coreboot", "invalid_value"),
        ("scsihw: nvme", "invalid_value"),
        ("machine: microvm", "unsupported_machine"),
        ("arch: aarch64\nmemory: 512", "unsupported_machine"),
        ("cpu: custom-mine", "unsupported_cpu"),
        ("cpu: host,flags=aes", "invalid_value"),
        ("args: -append 'broken", "invalid_args"),
        ("smbios1: uuid=nonsense", "invalid_value"),
        ("boot: xyz", "invalid_value"),
        ("scsi31: local:1", "invalid_device"),
        ("virtio16: local:1", "invalid_device"),
        ("net32: virtio", "invalid_device"),
        ("serial4: socket", "invalid_device"),
        ("unused256: local:x", "invalid_device"),
        ("serial0: pipe", "invalid_value"),
        ("serial0: /dev/../etc/shadow", "invalid_value"),
        ("scsi0: local:a\tb.raw", "invalid_value"),
        ("net0: virtio=01:00:00:00:00:01", "invalid_value"),
        ("net0: token-ring", "invalid_value"),
        ("net0: bridge=vmbr0", "invalid_value"),
        ("net0: e1000,mtu=1450", "invalid_value"),
        ("net0: virtio,bridge=a-name-that-is-too-long", "invalid_value"),
        ("scsi0: vm-1-disk-0", "invalid_value"),
        ("scsi0: none", "invalid_value"),
        ("scsi0: local:x,size=0", "invalid_value"),
        ("scsi0: local:x,size=99999999999999T", "invalid_value"),
        ("scsi0: local:x,size=1G,size=2G", "invalid_value"),
        ("scsi0: local:x,format=vhdx", "unsupported_format"),
        ("scsi0: lo/cal:x", "invalid_value"),
        ("scsi0: /srv/../etc/shadow", "invalid_value"),
        ("ide0: local:x,ro=1", "invalid_value"),
        ("virtio0: local:x.iso,media=cdrom", "invalid_value"),
        ("tpmstate0: local:t.qcow2", "unsupported_format"),
        ("tpmstate0: local:t.raw,version=v3", "invalid_value"),
        ("memory: 512\nmemory: 512", "duplicate_key"),
        ("memory: 512\nthis is no entry", "invalid_line"),
        ("memory: 512\nvga: \0", "invalid_value"),
        ("memory: 512\n[snap]\nname: \0", "invalid_value"),
    ],
)
def test_line_is_refused(line: str, code: str) -> None:
    assert refused(line).code == code


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# only a comment\n", "Dear Sir,\nhow are you?\n", "note: hello", "\0\x01"]
)
def test_text_that_is_no_config(text: str) -> None:
    assert refused(text).code == "not_a_config"


def test_every_fault_is_named_with_its_line() -> None:
    problems = refused("# head\nmemory: x\n\ncores: y\nboot: order=a\nname: ok\nboo").problems
    assert [problem.message.split(": ")[0] for problem in problems] == ["100.conf:7", "100.conf:2", "100.conf:4"]
    assert all(problem.hint for problem in problems)


def test_usual_values_are_those_of_proxmox() -> None:
    vm = read("ostype: l26")
    assert (vm.memory_mib, vm.cores, vm.firmware, vm.scsi_controller) == (512, 1, "seabios", "lsi53c895a")
    assert read("tpmstate0: local:t.raw").tpm_version == "v2.0"


@pytest.mark.parametrize(
    ("boot", "order"),
    [
        ("boot: order=virtio1;net0", "order=virtio1;net0"),
        ("boot: ncd\nbootdisk: virtio1", "order=net0;virtio1;ide2"),
        ("boot: c", "order=virtio0"),
        ("boot: a", None),
        ("boot: ", None),
        ("", None),
    ],
)
def test_boot_order(boot: str, order: str | None) -> None:
    parts = "virtio0: local:1\nvirtio1: local:1\nide2: none,media=cdrom\nnet0: virtio\n"
    assert read(parts + boot).boot == order


def test_cards_without_address_or_with_the_bridges_mtu() -> None:
    (nic,) = read("net0: virtio,bridge=vmbr0,mtu=1").nics
    assert nic == Nic("net0", "virtio-net-pci", None, "vmbr0", None, {"mtu": "1"})


def test_windows_line_ends_and_byte_order_mark() -> None:
    assert read("\ufeffmemory: 1024\r\nname: a\r\n[PENDING]\r\n").memory_mib == 1024


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("q35", "q35"),
        ("pc", "pc"),
        ("type=q35", "q35"),
        ("pc-i440fx-7.2+pve0.pxe", "pc-i440fx-7.2"),
        ("pc-q35-8.1+pve1", "pc-q35-8.1"),
    ],
)
def test_machine_type(machine: str, expected: str) -> None:
    assert read(f"machine: {machine}").machine == expected


# Text that looks much like a guest file reaches deeper than any text does.
KEYS = st.sampled_from(
    [
        *("args", "bios", "boot", "bootdisk", "cores", "cpu", "efidisk0", "ide2", "machine", "memory", "name", "net0"),
        *("scsi0", "scsihw", "serial0", "smbios1", "tags", "tpmstate0", "unused0", "virtio0", "vmstate"),
        *("agent", "arch", "cdrom", "[PENDING]"),
    ]
)
VALUES = st.lists(
    st.sampled_from(
        ["local:", "vm-1-disk-0", "none", ",", "=", "size", "4", "G", "media=cdrom", "/", "..", "'", "\0", "+"]
    )
    | st.text(max_size=4)
).map("".join)
LINES = st.lists(st.tuples(KEYS, st.sampled_from([": ", ":", " "]), VALUES).map("".join)).map("\n".join)


@given(st.text() | LINES)
def test_any_text_is_a_definition_or_refused(text: str) -> None:
    try:
        vm = read(text)
    except Refused as error:
        assert all("\n" not in problem.message for problem in error.problems)
    else:
        data = json.dumps(vm.as_dict())
        assert "\\u0000" not in data  # the database cannot hold it
        assert VmDefinition.from_dict(json.loads(data)) == vm
