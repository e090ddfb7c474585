"""Pending changes and snapshots: what only they refer to is found, and what they name follows what was moved."""

from __future__ import annotations

import pytest

from haulier.definition import Role, VmDefinition, read_proxmox
from haulier.definition.sections import Place, moved
from haulier.errors import Refused

TEXT = """\
name: web
scsi0: local:9/disk0.qcow2,size=8M
tpmstate0: local:9/tpm.raw,size=4M,version=v2.0
unused0: slow:9/old.raw
sata1: /srv/images/data.raw

[PENDING]
scsi1: local:9/new.raw,size=4M
ide2: none,media=cdrom
delete: net0

[before]
#scsi0: local:9/a-comment.raw
scsi0: local:9/disk0.qcow2,size=8M
scsi2: file=local:9/gone.raw
sata1: /srv/images/data.raw,size=1M
tpmstate0: local:9/tpm.raw,size=4M,version=v2.0
vmstate: local:9/vm-9-state-before.raw
snaptime: 1700000000

[later]
vmstate: local:9/vm-9-state-later.raw
scsi2: local:9/gone.raw
"""


def read(text: str = TEXT) -> VmDefinition:
    return read_proxmox(text, source="9.conf")


def test_what_only_a_section_refers_to() -> None:
    found = [(spec.device, spec.role, spec.name) for spec in read().volumes if spec.section]
    assert found == [
        ("PENDING.scsi1", Role.UNUSED, "9/new.raw"),
        ("before.scsi2", Role.DISK, "9/gone.raw"),
        ("before.vmstate", Role.VMSTATE, "9/vm-9-state-before.raw"),
        ("later.vmstate", Role.VMSTATE, "9/vm-9-state-later.raw"),
    ]


def test_nothing_of_a_section_is_opened_or_made() -> None:
    beside = [spec for spec in read().volumes if spec.section]
    assert not any(spec.is_opened or spec.size_bytes for spec in beside)
    assert [spec.device for spec in read().volumes if spec.is_opened] == ["scsi0", "sata1"]


def test_fault_in_a_section_is_named_with_its_line() -> None:
    with pytest.raises(Refused, match=r"9\.conf:4: \[before\]: "):
        read("name: web\nmemory: 64\n[before]\nscsi0: local:../../etc/shadow\n")


def test_everything_names_the_new_place() -> None:
    places = {
        ("local", "9/disk0.qcow2"): ("fast", "9/disk0-1.qcow2"),
        ("local", "9/gone.raw"): ("fast", "9/gone.raw"),
        ("slow", "9/old.raw"): ("local", "9/old.raw"),
        (None, "/srv/images/data.raw"): ("local", "srv/images/data.raw"),
        ("local", "9/vm-9-state-later.raw"): ("fast", "9/vm-9-state-later.raw"),
    }
    after = moved(read(), places)
    assert [(spec.device, spec.storage, spec.name) for spec in after.volumes] == [
        ("scsi0", "fast", "9/disk0-1.qcow2"),
        ("tpmstate0", "local", "9/tpm.raw"),
        ("unused0", "local", "9/old.raw"),
        ("sata1", "local", "srv/images/data.raw"),
        ("PENDING.scsi1", "local", "9/new.raw"),
        ("before.scsi2", "fast", "9/gone.raw"),
        ("before.vmstate", "local", "9/vm-9-state-before.raw"),
        ("later.vmstate", "fast", "9/vm-9-state-later.raw"),
    ]
    assert after.ignored["[PENDING]"] == read().ignored["[PENDING]"]
    assert after.ignored["[before]"].split("\n") == [
        "#scsi0: local:9/a-comment.raw",
        "scsi0: fast:9/disk0-1.qcow2,size=8M",
        "scsi2: fast:9/gone.raw",
        "sata1: local:srv/images/data.raw,size=1M",
        "tpmstate0: local:9/tpm.raw,size=4M,version=v2.0",
        "vmstate: local:9/vm-9-state-before.raw",
        "snaptime: 1700000000",
    ]


def test_nothing_changes_where_nothing_moved() -> None:
    assert moved(read(), {("local", "9/disk0.qcow2"): ("local", "9/disk0.qcow2")}) == read()


def test_there_and_back() -> None:
    there: dict[Place, Place] = {("local", "9/disk0.qcow2"): ("fast", "9/disk0-1.qcow2")}
    assert moved(moved(read(), there), {new: old for old, new in there.items()}) == read()


def test_format_follows_where_it_had_to_change() -> None:
    """Of a line of a section the option, if it has one."""
    definition = read(
        TEXT.replace("scsi0: local:9/disk0.qcow2,size=8M\nscsi2", "scsi0: local:9/disk0.qcow2,format=qcow2\nscsi2")
    )
    old: Place = ("local", "9/disk0.qcow2")
    after = moved(definition, {old: ("fast", "vm-9-disk-0")}, formats={old: "raw"})
    spec = next(spec for spec in after.volumes if spec.device == "scsi0")
    assert (spec.storage, spec.name, spec.format) == ("fast", "vm-9-disk-0", "raw")
    assert "scsi0: fast:vm-9-disk-0,format=raw" in after.ignored["[before]"].split("\n")
    assert {spec.format for spec in after.volumes if spec.device != "scsi0"} == {"raw"}
