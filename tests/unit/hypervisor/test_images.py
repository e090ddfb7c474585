"""Image files: nothing is overwritten that is there, and what held secrets is overwritten before it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from haulier.errors import StepFailed
from haulier.hypervisor.images import create_image, destroy_image, free_bytes, link_image, remove_image


def test_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"somebody's")
    with pytest.raises(StepFailed, match="volume_exists"):
        create_image(path, format="raw", size_bytes=1 << 20)
    assert path.read_bytes() == b"somebody's"


def test_link_is_never_followed(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "disk.raw", tmp_path / "elsewhere"
    path.symlink_to(elsewhere)
    with pytest.raises(StepFailed):
        create_image(path, format="raw", size_bytes=1 << 20)
    assert not elsewhere.exists()
    assert path.is_symlink()


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    """A storage's path may be anything; it must not end as a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(StepFailed, match="volume_not_made"):
        create_image(tmp_path / "file" / "disk.raw", format="raw", size_bytes=1 << 20)


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) + 7])
def test_destroyed_bytes_are_gone_under_every_name(tmp_path: Path, size: int) -> None:
    path, other = tmp_path / "tpm.raw", tmp_path / "other"
    path.write_bytes(b"\xa5" * size)
    other.hardlink_to(path)
    destroy_image(path)
    assert not path.exists()
    assert other.read_bytes() == bytes(size)


def test_destroying_needs_no_room_that_the_file_has_not_got(tmp_path: Path) -> None:
    """On a storage that is full the undo of a migration would never end."""
    path, other = tmp_path / "tpm.raw", tmp_path / "other"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"\xa5" * 5000)
    other.hardlink_to(path)
    taken = other.stat().st_blocks
    destroy_image(path)
    assert other.read_bytes().count(0) == 64 << 20
    assert other.stat().st_blocks <= taken


def test_what_a_link_leads_to_is_not_overwritten(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "tpm.raw", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"somebody's")
    path.symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        destroy_image(path)
    assert elsewhere.read_bytes() == b"somebody's"


def test_second_name_is_the_same_file(tmp_path: Path) -> None:
    replica, path = tmp_path / "old.m1.raw", tmp_path / "web1" / "old.raw"
    replica.write_bytes(b"content")
    assert link_image(path, other=replica)
    remove_image(replica)
    assert path.read_bytes() == b"content"


def test_second_name_that_cannot_be(tmp_path: Path) -> None:
    """Without a replica's file it is copied; where there is a file of that name, that is somebody else's."""
    assert not link_image(tmp_path / "disk.raw", other=tmp_path / "gone")
    (tmp_path / "disk.raw").write_bytes(b"somebody's")
    (tmp_path / "replica").write_bytes(b"content")
    with pytest.raises(StepFailed, match="volume_exists"):
        link_image(tmp_path / "disk.raw", other=tmp_path / "replica")
    assert (tmp_path / "disk.raw").read_bytes() == b"somebody's"


def test_destroying_and_removing_twice(tmp_path: Path) -> None:
    path = tmp_path / "tpm.raw"
    for act in (destroy_image, remove_image):
        path.touch()
        for _ in range(2):
            act(path)
            assert not path.exists()


def test_room_under_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert abs(free_bytes(tmp_path / "a" / "b") - free_bytes(tmp_path)) < 1 << 30
    assert free_bytes(tmp_path) > 0
