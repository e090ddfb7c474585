"""Haulier's own file form: the usual values, the short forms, and errors that name the key."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.definition import Nic, Role, VmDefinition, VolumeSpec, read_toml
from haulier.errors import Refused

MIB = 1024**2


def read(text: str) -> VmDefinition:
    return read_toml(text, source="vm.toml")


def refused(text: str) -> Refused:
    with pytest.raises(Refused) as caught:
        read(text)
    assert all("\n" not in problem.message for problem in caught.value.problems)
    return caught.value


def test_whole_file() -> None:
    vm = read("""
        name = "web1"
        vmid = 101
        memory_mib = 256
        machine = "q35"
        tpm = true
        args = ["-kernel", "/boot/probe"]
        boot = ["virtio0", "net0"]
        serial = ["socket"]
        tags = ["web"]

        [[disk]]
        device = "virtio0"
        storage = "local"
        size = "1G"
        format = "qcow2"

        [[disk]]
        size = 4194304
        serial = "second"

        [[disk]]
        role = "cdrom"

        [[nic]]
        bridge = "vmbr0"
        mac = "bc:24:11:00:00:01"
        mtu = 9000
    """)
    assert vm == VmDefinition(
        name="web1",
        vmid=101,
        memory_mib=256,
        machine="q35",
        tpm_version="v2.0",
        args=("-kernel", "/boot/probe"),
        boot="order=virtio0;net0",
        serials=("socket",),
        tags=("web",),
        volumes=(
            VolumeSpec("tpmstate0", Role.TPMSTATE, "local", None, "raw", 4 * MIB),
            VolumeSpec("virtio0", Role.DISK, "local", None, "qcow2", 1024 * MIB),
            VolumeSpec("virtio1", Role.DISK, "local", None, "raw", 4 * MIB, options={"serial": "second"}),
            VolumeSpec("sata0", Role.CDROM, read_only=True),
        ),
        nics=(Nic("net0", "virtio-net-pci", "BC:24:11:00:00:01", "vmbr0", 9000),),
    )
    assert VmDefinition.from_dict(json.loads(json.dumps(vm.as_dict()))) == vm


def test_the_shortest_file() -> None:
    assert read('name = "a"') == VmDefinition(name="a")


@pytest.mark.parametrize(
    ("text", "version", "volume"),
    [
        ("tpm = false", None, None),
        ('tpm = "v1.2"', "v1.2", VolumeSpec("tpmstate0", Role.TPMSTATE, "local", None, "raw", 4 * MIB)),
        (
            '[tpm]\nstorage = "fast"\nsize = "8M"\nname = "1/tpm.raw"',
            "v2.0",
            VolumeSpec("tpmstate0", Role.TPMSTATE, "fast", "1/tpm.raw", "raw", 8 * MIB),
        ),
    ],
)
def test_tpm(text: str, version: str | None, volume: VolumeSpec | None) -> None:
    vm = read(text)
    assert vm.tpm_version == version
    assert vm.volumes == ((volume,) if volume else ())


def test_ovmf_brings_its_variables() -> None:
    assert read('firmware = "ovmf"').volumes == (
        VolumeSpec("efidisk0", Role.EFIDISK, "local", None, "raw", 528 * 1024),
    )


def test_args_as_one_text() -> None:
    assert read("""args = "-append 'a b'" """).args == ("-append", "a b")


@pytest.mark.parametrize(
    ("text", "code", "message", "hint"),
    [
        ("memory = 1", "unknown_key", "vm.toml: memory: there is no such key", "did you mean memory_mib?"),
        ("[[disk]]\nsiz = 1", "unknown_key", "vm.toml: disk[0].siz: there is no such key", "did you mean size?"),
        ("[tpm]\nqqqq = 1", "unknown_key", "vm.toml: tpm.qqqq: there is no such key", "the keys here are"),
        ('memory_mib = "256"', "invalid_value", "vm.toml: memory_mib: Input should be a valid integer", ""),
        ("cores = true", "invalid_value", "vm.toml: cores: ", ""),
        ("cores = 0", "invalid_value", "vm.toml: cores: ", ""),
        ("tpm = 5", "invalid_value", "vm.toml: tpm: ", ""),
        ('tpm = "v3"', "invalid_value", "vm.toml: tpm.version: ", ""),
        ('[[disk]]\nsize = "big"', "invalid_value", "vm.toml: disk[0].size: 'big' is no size", ""),
        ("[[disk]]\nsize = 0", "invalid_value", "vm.toml: disk[0].size: ", ""),
        ('[[disk]]\nname = "../x"', "volume_path_outside_storage", "vm.toml: disk[0]: ", ""),
        ('[[disk]]\nname = "\\u0000"', "volume_path_outside_storage", "vm.toml: disk[0]: ", ""),
        ('[[disk]]\nname = "/etc/passwd"', "volume_path_outside_storage", "vm.toml: disk[0]: ", ""),
        ('[efi]\nname = "../x"', "volume_path_outside_storage", "vm.toml: efi: ", ""),
        ('[tpm]\nname = "../x"', "volume_path_outside_storage", "vm.toml: tpm: ", ""),
        ('[tpm]\nname = "a,mode=0666"', "invalid_value", "vm.toml: tpm: ", "leave out the comma"),
        ('[[disk]]\nname = "a\\nb"', "invalid_value", "vm.toml: disk[0]: ", ""),
        ('[[disk]]\npath = "/a\\nb"', "invalid_value", "vm.toml: disk[0]: ", ""),
        ('[[disk]]\npath = "/srv/../etc/shadow"', "invalid_value", "vm.toml: disk[0]: ", ""),
        ('[[disk]]\ndevice = "floppy0"', "invalid_device", "vm.toml: disk[0]: ", ""),
        ('[[disk]]\ndevice = "ide0"\n[[disk]]\ndevice = "ide0"', "duplicate_device", "vm.toml: disk[1]: ", ""),
        ('[[disk]]\npath = "/x"\nname = "x"', "invalid_value", "vm.toml: disk[0]: ", ""),
        ('[[disk]]\nrole = "unused"\ndevice = "scsi0"', "invalid_value", "vm.toml: disk[0]: ", ""),
        ('[[disk]]\nrole = "cdrom"\nstorage = "local"', "invalid_value", "vm.toml: disk[0]: ", ""),
        ('[[nic]]\nmodel = "token-ring"', "invalid_value", "vm.toml: nic[0]: ", ""),
        ('[[nic]]\ndevice = "net32"', "invalid_device", "vm.toml: nic[0]: ", ""),
        ('[[nic]]\n[[nic]]\ndevice = "net0"', "duplicate_device", "vm.toml: nic[1]: ", ""),
        ('boot = ["scsi0"]', "invalid_value", "vm.toml: boot: ", ""),
        ('name = "a b"', "invalid_value", "vm.toml: name: ", ""),
        ("name = a", "invalid_syntax", "vm.toml:1: no valid TOML: ", ""),
        ('args = "\'broken"', "invalid_value", "vm.toml: args: No closing quotation", ""),
        ('args = ["\\u0000"]', "invalid_value", "vm.toml: args: ", ""),
        ("cores = " + "9" * 5000, "invalid_syntax", "vm.toml: no valid TOML: ", ""),
        ("cores = " + "[" * 5000, "invalid_syntax", "vm.toml: no valid TOML: ", ""),
        ("", "not_a_config", "vm.toml:1: ", ""),
        ("Dear Sir", "not_a_config", "vm.toml:1: ", ""),
        ("\0\x01\x02", "not_a_config", "vm.toml:1: ", ""),
    ],
)
def test_refusals(text: str, code: str, message: str, hint: str) -> None:
    problem = refused(text).problem
    assert problem.code == code
    assert problem.message.startswith(message)
    assert problem.hint.startswith(hint)
    assert problem.hint


def test_every_fault_is_named() -> None:
    assert len(refused('cores = "x"\nmemorry_mib = 1\n[[nic]]\nmtu = 1').problems) == 3
    assert len(refused('name = "-"\nmachine = "z"\n[[nic]]\nmac = "x"').problems) == 3


WORDS = st.sampled_from(
    [
        "name",
        "disk",
        "size",
        "tpm",
        "args",
        "[",
        "]",
        "[[disk]]",
        "=",
        '"1G"',
        '"',
        "'",
        "\n",
        "true",
        "4",
        "\\u0000",
        ".",
    ]
)


@given(st.text() | st.lists(WORDS).map("".join) | st.lists(WORDS).map(" ".join))
def test_any_text_is_a_definition_or_refused(text: str) -> None:
    try:
        vm = read(text)
    except Refused as error:
        assert all("\n" not in problem.message for problem in error.problems)
    else:
        assert "\\u0000" not in json.dumps(vm.as_dict())


def test_faults_of_every_kind_at_once() -> None:
    """Keys, types, ranges and meanings; and nothing is made up about what hangs on a faulty part."""
    text = """
        memory_mb = 512
        memory_mib = -4
        machine = "q36"
        boot = ["virtio0", "scsi9"]
        [[disk]]
        size = "64Q"
        [[disk]]
        format = "qcow3"
        size = "1G"
        [[nic]]
        mac = "nonsense"
    """
    found = {problem.message.split(":")[1].strip() for problem in refused(text).problems}
    assert found == {"memory_mb", "memory_mib", "machine", "disk[0].size", "disk[1]", "nic[0]"}


def test_faulty_table_is_told_once() -> None:
    assert len(refused("disk = 3\nname = 'web 1'").problems) == 2
    assert len(refused("[[disk]]\nsize = '1Q'\nfolder = 'x'").problems) == 2
