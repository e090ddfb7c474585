"""Paths of volumes: what a definition, a row or a link makes of them stays below the storage's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from haulier.definition.storage import StorageKind, StoragePlace
from haulier.errors import Refused
from haulier.hypervisor.storage import driver_of
from haulier.hypervisor.volume_paths import problem_of_path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A storage's folder with links of all kinds in it, and something outside that must not be reached."""
    images = tmp_path / "images"
    (images / "web").mkdir(parents=True)
    (images / "web" / "disk.raw").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").touch()
    (tmp_path / "images-too").mkdir()
    links = {
        "file": "../outside/secret",
        "absolute": str(tmp_path / "outside" / "secret"),
        "folder": "../outside",
        "chain": "folder",
        "nowhere": "../not-there",
        "beside": "../images-too",
        "circle": "circle",
        "itself": ".",
        "inside": "web/disk.raw",
    }
    for name, to in links.items():
        (images / name).symlink_to(to)
    return images


@pytest.mark.parametrize(
    "name",
    [
        "../outside/secret", "../../etc/passwd", "web/../../outside/secret", "/etc/passwd", "..", ".", "", "web/..",
        "a\0b.raw", "a\nb.raw", "a\x1bb.raw", "../images-too/disk.raw",
        "file", "absolute", "folder/secret", "folder/new.raw", "folder/new/new.raw", "chain/secret", "nowhere",
        "nowhere/new.raw", "beside/new.raw", "itself", "web/../folder/secret",
    ],
)  # fmt: skip
def test_out_of_the_folder(images: Path, name: str) -> None:
    with pytest.raises(Refused) as caught:
        driver_of(StoragePlace(StorageKind.FOLDER, images)).require(images / name)
    problem = caught.value.problem
    assert problem.code == "volume_path_outside_storage"
    assert problem.hint
    assert "\n" not in problem.message


@pytest.mark.parametrize("name", ["web/disk.raw", "web/new.raw", "new/new/new.raw", "..disk", "inside", "ünïcode.raw"])
def test_inside_the_folder(images: Path, name: str) -> None:
    assert problem_of_path(images / name, images) is None


def test_circle_of_links(images: Path) -> None:
    """Python before 3.13 finds it; later ones leave it to whoever opens the file, which cannot be done."""
    problem_of_path(images / "circle" / "new.raw", images)


def test_folder_that_is_itself_a_link(images: Path, tmp_path: Path) -> None:
    """An administrator puts a storage on another disk so."""
    storage = tmp_path / "storage"
    storage.symlink_to(images)
    assert problem_of_path(storage / "web" / "disk.raw", storage) is None
    assert problem_of_path(storage / "file", storage)


def test_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert problem_of_path(tmp_path / "new" / "disk.raw", tmp_path / "new") is None


def test_any_file_of_the_host_is_inside_its_root(images: Path) -> None:
    """What a definition gives by an absolute path, links and all, was allowed when it was defined."""
    assert problem_of_path(images / "file", Path("/")) is None


def test_file_system_that_must_be_mounted(tmp_path: Path) -> None:
    """Without it the folder is another one, and what is put there is in nobody's way until it is mounted."""
    driver_of(StoragePlace(StorageKind.FOLDER, tmp_path / "images")).require_usable()
    driver_of(StoragePlace(StorageKind.MOUNT, Path("/proc/images"))).require_usable()
    for missing in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(Refused, match="storage_not_mounted"):
            driver_of(StoragePlace(StorageKind.MOUNT, missing / "images")).require_usable()
