"""What `check` sees in the volumes' files, on real folders."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from haulier.definition.storage import StorageKind, StoragePlace
from haulier.hypervisor.images import ImageInfo
from haulier.services.attempts import AttemptView, ReplicaView, TransferView
from models import Phase, Side, Storage, TransferMethod
from tasks import comparing, volume_files
from tests.unit.services.world import World


@pytest.fixture
def view(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AttemptView:
    """A migration whose volumes are there, on the source alone, each as long as it should be."""
    world.change(Storage, path=str(tmp_path / "there"))
    world.change(Storage, Storage.id == 1, path=str(tmp_path / "here"))
    world.file()
    view = world.view()
    sizes = {each.source_path: each.size_bytes for each in view.transfers}
    for path in sizes:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(volume_files, "image_info", lambda path, format: ImageInfo(format, sizes[path], 0, None, 0))
    return view


def codes(view: AttemptView) -> list[str]:
    return [problem.code for problem in volume_files.source_problems(view)]


def stay(view: AttemptView, device: str, *, target: Path) -> AttemptView:
    """One of the volumes is one that both nodes see."""
    shared = {"method": TransferMethod.NONE, "stays": True, "target_path": target}
    shared["target_at"] = StoragePlace(StorageKind.FOLDER, target.parent)
    transfers = tuple(
        dataclasses.replace(each, **shared) if each.device == device else each  # type: ignore[arg-type]
        for each in view.transfers
    )
    view = dataclasses.replace(view, transfers=transfers)
    seen = volume_files.seen_files(view)
    return dataclasses.replace(view, notes={(Phase.CHECK, Side.SOURCE): seen})


def test_nothing_against_it(view: AttemptView) -> None:
    assert codes(view) == []
    assert list(volume_files.target_problems(stay(view, "none of them", target=Path("/")))) == []


def test_volume_that_is_not_there(view: AttemptView) -> None:
    view.transfers[0].source_path.unlink()
    assert codes(view) == ["volume_missing"]


@pytest.mark.parametrize("how", [os.link, os.symlink])
def test_one_file_under_two_names(view: AttemptView, how: object) -> None:
    """Two copies of it would go on as two disks."""
    first, second, _ = view.transfers
    second.source_path.unlink()
    assert callable(how)
    how(first.source_path, second.source_path)
    (problem,) = volume_files.source_problems(view)
    assert problem.code == "one_file_two_names"
    assert problem.message.startswith(f"{second.device} and {first.device}")


def test_image_that_two_drives_may_read(view: AttemptView) -> None:
    first, second, _ = view.transfers
    second.source_path.unlink()
    second.source_path.hardlink_to(first.source_path)
    assert codes(stay(view, second.device, target=first.source_path)) == []


def test_length_of_what_is_copied(view: AttemptView) -> None:
    (copied,) = view.by_method(TransferMethod.COPY)
    copied.source_path.write_bytes(b"x" * 1234)
    seen = volume_files.seen_files(view)
    assert (seen["file_bytes"], seen["unchanged"]) == ({copied.device: 1234}, [])


def test_disks_that_are_compared(view: AttemptView, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a VM that does not run, those whose replica no bitmap speaks of."""
    disk, *_ = view.transfers
    replicated = dataclasses.replace(
        disk, method=TransferMethod.DELTA, replica=ReplicaView(3, 7, disk.final_path, None)
    )

    def compared(*, bitmaps: frozenset[str] = frozenset(), offline: bool = True, known: TransferView) -> list[str]:
        seen = ImageInfo(disk.format, disk.size_bytes, 0, None, 0, bitmaps=bitmaps)
        monkeypatch.setattr(comparing, "image_info", lambda path, format: seen)
        looked_at = dataclasses.replace(view, transfers=(known,), offline=offline)
        found: list[str] = volume_files.seen_files(looked_at)["compared"]
        return found

    assert compared(known=replicated) == [disk.device]
    assert compared(known=replicated, bitmaps=frozenset({"haulier-r3-g6", "haulier-r4-g7"})) == [disk.device]
    assert compared(known=replicated, bitmaps=frozenset({"haulier-r3-g7"})) == []
    assert compared(known=replicated, offline=False) == [], "its guest writes meanwhile"
    assert compared(known=dataclasses.replace(replicated, replica=None)) == [], "there is nothing to compare it with"


def test_file_that_looks_as_it_did_when_its_replica_was_made(view: AttemptView) -> None:
    (copied,) = view.by_method(TransferMethod.COPY)
    copied.source_path.write_bytes(b"x" * 1234)
    looks = volume_files.seen_files(view)["looks"][copied.device]

    def unchanged(replication: int | None = 1) -> list[str]:
        known = dataclasses.replace(copied, replica=ReplicaView(1, 1, copied.target_path, looks))
        seen = volume_files.seen_files(dataclasses.replace(view, transfers=(known,), replication_id=replication))
        found: list[str] = seen["unchanged"]
        return found

    assert unchanged() == [copied.device]
    assert unchanged(None) == [copied.device], "a migration makes use of it, too"
    copied.source_path.write_bytes(b"y" * 1234)
    assert unchanged() == []


def test_folder_of_both_nodes_that_nobody_called_shared(view: AttemptView) -> None:
    """Whoever moved the target's file away, because there is one already, would move away the VM's only one."""
    disk, *_ = view.transfers
    view = stay(view, "none of them", target=Path("/"))
    mine = dataclasses.replace(disk, target_at=disk.source_at, target_path=disk.source_path)
    moving = dataclasses.replace(view, transfers=(mine,))
    assert [problem.code for problem in volume_files.target_problems(moving)] == ["seems_shared"]
    other = disk.source_path.with_name("another")
    other.touch()
    moving = dataclasses.replace(view, transfers=(dataclasses.replace(mine, target_path=other),))
    assert [problem.code for problem in volume_files.target_problems(moving)] == ["volume_exists"]


def test_storage_of_the_target_that_is_not_mounted(view: AttemptView, tmp_path: Path) -> None:
    """Said once for all volumes that are to go there."""
    view = stay(view, "none of them", target=Path("/"))
    there = StoragePlace(StorageKind.MOUNT, tmp_path / "mnt" / "images")
    transfers = tuple(dataclasses.replace(each, target_at=there) for each in view.transfers)
    moving = dataclasses.replace(view, transfers=transfers)
    assert [problem.code for problem in volume_files.target_problems(moving)] == ["storage_not_mounted"]


def test_shared_file_is_the_same_one(view: AttemptView, tmp_path: Path) -> None:
    source = view.transfers[0].source_path
    other = tmp_path / "there" / "other"
    other.parent.mkdir(exist_ok=True)
    other.touch()
    for target, expected in ((source, []), (other, ["not_shared"]), (other.with_name("nothing"), ["not_shared"])):
        moving = stay(view, view.transfers[0].device, target=target)
        assert [problem.code for problem in volume_files.target_problems(moving)] == expected
