"""What each kind of storage can hold, and what a volume is called there."""

from __future__ import annotations

from pathlib import Path

import pytest

from haulier.definition.storage import KINDS, Image, StorageKind, StoragePlace, format_on, name_on, problem_of_place

DEVICES = [kind for kind in StorageKind if not KINDS[kind].has_files]


def test_each_kind_has_its_facts() -> None:
    assert list(KINDS) == list(StorageKind)


@pytest.mark.parametrize("kind", DEVICES)
def test_device_holds_raw_alone(kind: StorageKind) -> None:
    assert [format_on(kind, form) for form in ("raw", "qcow2")] == ["raw", "raw"]
    assert format_on(StorageKind.FOLDER, "qcow2") == "qcow2"


@pytest.mark.parametrize(
    ("file", "device"),
    [
        ("101/vm-101-disk-0.raw", "vm-101-disk-0"),
        ("101/base-101-disk-0.raw", "base-101-disk-0"),
        ("web/scsi0.raw", "web-scsi0"),
        ("web/tpmstate0.raw", "web-tpmstate0"),
    ],
)
def test_name_there_and_back(file: str, device: str) -> None:
    """Haulier's own names and those of Proxmox VE are what they were, when a volume comes back."""
    assert name_on(StorageKind.LVM, file, form="raw", vm="web") == device
    assert name_on(StorageKind.FOLDER, device, form="raw", vm="web") == file
    assert name_on(StorageKind.LVMTHIN, device, form="raw", vm="web") == device
    assert name_on(StorageKind.MOUNT, file, form="raw", vm="web") == file


@pytest.mark.parametrize(
    ("file", "device"),
    [
        ("101/vm-101-disk-0.qcow2", "vm-101-disk-0"),
        ("a/b/c d.qcow2", "a-b-c_d"),
        ("disk.with.dots", "disk.with.dots"),
        ("-x/-y.raw", "x--y"),
        ("ünï.raw", "_n_"),
    ],
)
def test_name_that_fits_a_device(file: str, device: str) -> None:
    assert name_on(StorageKind.LVM, file, form="raw", vm="web") == device
    assert problem_of_place(StorageKind.LVM, device, form="raw") is None


@pytest.mark.parametrize("name", ["a/b", "", "a b", "-a", "snapshot1", "x_tdata", "..", "a" * 128, "lv\n", "pvmove0"])
@pytest.mark.parametrize("kind", DEVICES)
def test_name_that_no_device_has(kind: StorageKind, name: str) -> None:
    problem = problem_of_place(kind, name, form="raw")
    assert problem
    assert problem.code == "bad_volume_name"
    assert "\n" not in problem.message


@pytest.mark.parametrize("kind", DEVICES)
def test_format_that_no_device_has(kind: StorageKind) -> None:
    problem = problem_of_place(kind, "vm-1-disk-0", form="qcow2")
    assert problem
    assert problem.code == "format_not_held"
    assert problem_of_place(StorageKind.FOLDER, "1/vm-1-disk-0.qcow2", form="qcow2") is None


def test_device_may_be_larger_than_its_volume() -> None:
    path = Path("/dev/pve/x")
    assert StoragePlace(StorageKind.LVM, Path("/dev/pve")).image(path, "raw", 540672) == Image(path, "raw", 540672)
    assert StoragePlace(StorageKind.FOLDER, Path("/images")).image(path, "raw", 540672) == Image(path, "raw")
