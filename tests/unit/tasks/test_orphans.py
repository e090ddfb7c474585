"""What an attempt left although it is over is put away, told of, and freed when it has been kept long enough."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.services.allocations import take_memory, take_port, take_volume
from models import Allocation, AllocationKind, Attempt, Event, Storage, Volume
from tasks.orphans import collect_orphans
from tests.unit.services.world import LONG_AGO, World


@dataclass
class Scene:
    """An attempt that is over and has given back nothing: a file on the target, a port, RAM."""

    world: World
    node_id: int
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "web" / "disk.raw"

    @property
    def away(self) -> Path:
        return next(self.file.parent.glob("orphan-*-disk.raw"))

    def collect(self) -> None:
        collect_orphans(self.world.context, self.node_id)

    def open_rows(self) -> list[str]:
        with self.world.context.database.read() as session:
            rows = session.scalars(select(Allocation).where(Allocation.freed_at.is_(None)))
            return [row.kind for row in rows]

    def told(self) -> list[str]:
        with self.world.context.database.read() as session:
            kinds = session.scalars(select(Event.kind).where(Event.kind.startswith("volume.")).order_by(Event.id))
            return list(kinds)

    def let_time_pass(self) -> None:
        self.world.change(Allocation, taken_at=now() - 2 * LONG_AGO)
        self.collect()
        self.world.pass_steadily(600)


@pytest.fixture
def scene(world: World, tmp_path: Path) -> Scene:
    world.file()
    view = world.view()
    scene = Scene(world, view.target.id, tmp_path / "images")
    world.change(Storage, Storage.node_id == scene.node_id, path=str(scene.folder))
    scene.file.parent.mkdir(parents=True)
    scene.file.write_text("somebody's")
    take_volume(world.context, view.attempt_id, view.target, scene.file)
    take_memory(world.context, view.attempt_id, view.target, 1 << 20)
    take_port(world.context, view.attempt_id, view.target, "disks", avoid=frozenset())
    world.change(Attempt, finished_at=now())
    return scene


def test_it_is_put_away_first_and_told(scene: Scene) -> None:
    scene.collect()
    assert (scene.file.exists(), scene.away.read_text()) == (False, "somebody's")
    assert (scene.open_rows(), scene.told()) == ([AllocationKind.VOLUME], ["volume.quarantined"])
    scene.collect()
    assert scene.away.exists()


def test_it_is_freed_when_it_was_kept_long_enough(scene: Scene) -> None:
    scene.collect()
    scene.let_time_pass()
    scene.collect()
    assert (list(scene.file.parent.iterdir()), scene.open_rows()) == ([], [])
    assert scene.told() == ["volume.quarantined", "volume.freed"]


def test_host_that_begins_with_a_wrong_clock_frees_nothing(scene: Scene) -> None:
    scene.collect()
    scene.world.change(Allocation, taken_at=now() - 2 * LONG_AGO)
    for _ in range(2):
        scene.collect()
        scene.world.pass_steadily(590)
    assert scene.away.exists()
    scene.world.change(Allocation, taken_at=now())
    scene.world.pass_steadily(10)
    scene.collect()
    assert scene.away.exists()


def test_attempt_that_is_not_over_keeps_all_of_it(scene: Scene) -> None:
    scene.world.change(Attempt, finished_at=None)
    scene.collect()
    assert scene.file.exists()
    assert len(scene.open_rows()) == 3


def test_what_a_row_names_stays(scene: Scene) -> None:
    with scene.world.context.database.write() as session:
        volume: Any = session.scalars(select(Volume).limit(1)).one()
        volume.storage_id = session.scalars(select(Storage.id).where(Storage.node_id == scene.node_id)).one()
        volume.name = "web/disk.raw"
    scene.collect()
    assert (scene.file.exists(), scene.told()) == (True, [])


def test_what_a_program_has_open_stays(scene: Scene) -> None:
    handle = os.open(scene.file, os.O_RDWR)
    try:
        scene.collect()
        assert (scene.file.exists(), scene.told()) == (True, [])
    finally:
        os.close(handle)
    scene.collect()
    assert scene.told() == ["volume.quarantined"]


def test_what_leads_out_of_the_storage_stays(scene: Scene, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("not ours")
    scene.file.unlink()
    scene.file.symlink_to(outside)
    scene.collect()
    assert (scene.file.is_symlink(), outside.read_text(), scene.told()) == (True, "not ours", [])


@pytest.mark.parametrize("died", ["before the rename", "before the row"])
def test_worker_that_died_in_between_is_no_harm(scene: Scene, monkeypatch: pytest.MonkeyPatch, died: str) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if died == "before the rename":
            patch.setattr(Path, "rename", die)
        else:
            patch.setattr("tasks.orphans.record_quarantined", die)
        with pytest.raises(KeyboardInterrupt):
            scene.collect()
    scene.collect()
    assert (scene.away.read_text(), scene.told()) == ("somebody's", ["volume.quarantined"])


def test_file_that_is_not_there_is_given_back(scene: Scene) -> None:
    scene.file.unlink()
    scene.collect()
    assert (scene.open_rows(), scene.told()) == ([], ["volume.freed"])


def test_tpm_state_that_is_gone_is_promised_to_nobody(scene: Scene) -> None:
    """A device keeps its name and is given back at once: there is nothing to be put away."""
    world, view = scene.world, scene.world.view()
    assert view.tpm
    take_volume(world.context, view.attempt_id, view.target, view.tpm.target_path)
    world.reserve_tpm(view)
    for _ in range(2):
        scene.collect()
    assert [role for _node, role, _epoch in world.ledger()] == ["active", "destroyed"]


@pytest.mark.parametrize("when", ["at first", "when its time is over"])
def test_second_name_of_a_replica_goes_and_the_replica_stays(scene: Scene, when: str) -> None:
    """To overwrite it, as what may be a TPM's state, would be to overwrite the replica."""
    replica = scene.folder / "web" / "old.m1.raw"
    if when == "when its time is over":
        scene.collect()
        scene.let_time_pass()
        replica.hardlink_to(scene.away)
    else:
        replica.hardlink_to(scene.file)
    scene.collect()
    assert replica.read_text() == "somebody's"
    assert list(scene.file.parent.iterdir()) == [replica]
    assert (scene.open_rows(), scene.told()[-1]) == ([], "volume.freed")
