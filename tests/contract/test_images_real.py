"""Real qemu-img: images made and looked at."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from haulier.errors import StepFailed
from haulier.hypervisor.images import create_image, image_info

pytestmark = pytest.mark.real


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_image(tmp_path: Path, format: str) -> None:
    path = tmp_path / "deep" / "disk"
    create_image(path, format=format, size_bytes=8 << 20)
    info = image_info(path, format=format)
    assert (info.format, info.size_bytes, info.backing, info.snapshots) == (format, 8 << 20, None, 0)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_clone_and_snapshot_are_seen(tmp_path: Path) -> None:
    base, clone = tmp_path / "base", tmp_path / "clone"
    create_image(base, format="qcow2", size_bytes=1 << 20)
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(clone)]
    subprocess.run(make, check=True, timeout=30)
    subprocess.run(["qemu-img", "snapshot", "-c", "s", str(clone)], check=True, timeout=30)
    info = image_info(clone, format="qcow2")
    assert (info.backing, info.snapshots) == (str(base), 1)


def test_image_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="qemu_img_failed"):
        create_image(tmp_path / "disk", format="wibble", size_bytes=1 << 20)
    with pytest.raises(StepFailed, match="qemu_img_failed"):
        create_image(tmp_path / "folder" / "disk", format="wibble", size_bytes=1 << 20)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder").mkdir()
    with pytest.raises(StepFailed, match="qemu_img_failed"):
        create_image(tmp_path / "folder" / "disk", format="wibble", size_bytes=1 << 20)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"], "that was there before"


def test_image_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"qemu_img_failed: .*No such file"):
        image_info(tmp_path / "disk", format="raw")


def test_header_that_a_guest_wrote_is_not_believed(tmp_path: Path) -> None:
    """The guest owns all bytes of a raw disk; it may make them look like a clone of a file of the host."""
    path, forged = tmp_path / "disk.raw", tmp_path / "forged"
    create_image(path, format="raw", size_bytes=1 << 20)
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/shadow", str(forged), "7G"]
    subprocess.run(make, check=True, timeout=30)
    with path.open("r+b") as disk_file:
        disk_file.write(forged.read_bytes()[: 1 << 16])
    info = image_info(path, format="raw")
    assert (info.format, info.size_bytes, info.backing) == ("raw", 1 << 20, None)


def test_image_of_another_format(tmp_path: Path) -> None:
    create_image(tmp_path / "disk", format="raw", size_bytes=1 << 20)
    with pytest.raises(StepFailed, match=r"qemu_img_failed: .*not in qcow2 format"):
        image_info(tmp_path / "disk", format="qcow2")
