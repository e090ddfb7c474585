"""Whatever the rows say and whatever links lie in a storage: no phase makes, opens or removes a file outside of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from haulier.clock import now
from haulier.errors import HaulierError, StepFailed
from haulier.hypervisor.layout import NodeLayout
from haulier.services.allocations import allocated_volumes, take_volume
from haulier.services.vm_rows import load_vm
from models import LedgerRole, Phase, Storage, TpmLedger, Volume, VolumeTransfer
from tasks import copy_cold, open_target, quarantine, reserve, retire_source, sync_tpm, vm
from tasks.bandwidth import Allowance
from tasks.runner import StepRun
from tasks.surroundings import ThisNode
from tasks.volume_files import source_problems
from tests.unit.services.world import LONG_AGO, World

NAMES = {
    "dots": "../outside/secret",
    "absolute": "{outside}/secret",
    "link": "link",
    "folder": "folder/secret",
    "newline": "a\nb",
}


class Work(StepRun):
    """A step on the node whose folders are given."""

    layout: NodeLayout

    @property
    def node(self) -> ThisNode:
        return ThisNode("here", self.layout)


@dataclass
class Scene:
    """A migration whose rows name something outside, on either node, and what must not be touched there."""

    world: World
    layout: NodeLayout
    outside: Path

    def work(self) -> Work:
        held = self.world.go(Phase.RESERVE)
        work = Work(self.world.context, held, self.world.view(), Allowance(self.world.context, held))
        work.layout = self.layout
        return work

    def untouched(self) -> bool:
        return [path.name for path in self.outside.iterdir()] == ["secret"] and (
            self.outside / "secret"
        ).read_text() == "not ours"


@pytest.fixture(params=NAMES)
def scene(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Iterator[Scene]:
    layout = NodeLayout(tmp_path / "node", tmp_path / "run")
    layout.prepare()
    outside = tmp_path / "node" / "outside"
    outside.mkdir()
    (outside / "secret").write_text("not ours")
    (layout.images / "link").symlink_to(outside / "secret")
    (layout.images / "folder").symlink_to(outside)
    (layout.images / "good.raw").touch()
    world.change(Storage, path=str(layout.images))
    world.file()
    name = NAMES[request.param].format(outside=outside)
    world.change(Volume, Volume.device == "scsi0", name=name)
    world.change(Volume, Volume.device != "scsi0", name=Volume.device)
    world.change(VolumeTransfer, source_name=name, target_name=name)
    scene = Scene(world, layout, outside)
    yield scene
    assert scene.untouched()


def create(scene: Scene) -> object:
    return vm._made_or_found(load_vm(scene.world.context, 1).volumes[0], [])


def start(scene: Scene) -> None:
    vm._start_processes(load_vm(scene.world.context, 1), scene.layout.vm("web"))


def check_source(scene: Scene) -> object:
    (found,) = set(source_problems(scene.work().view))
    raise HaulierError(found.code, found.message)


def run(phase: Any) -> Callable[[Scene], object]:
    return lambda scene: asyncio.run(phase.run(scene.work()))


def undo_reserve(scene: Scene) -> object:
    work = scene.work()
    for volume in work.view.transfers:
        take_volume(work.context, work.view.attempt_id, work.view.target, volume.target_path)
    return asyncio.run(reserve.undo(work))


@pytest.mark.parametrize(
    "act",
    [create, start, check_source, run(reserve), undo_reserve, run(copy_cold), run(sync_tpm), run(open_target),
     run(retire_source)],
    ids=["create", "start", "check", "reserve", "reserve.undo", "copy_cold", "sync_tpm", "open_target", "retire"],
)  # fmt: skip
def test_nothing_outside_is_touched(scene: Scene, act: Callable[[Scene], object]) -> None:
    with pytest.raises(HaulierError) as caught:
        act(scene)
    assert caught.value.code == "volume_path_outside_storage"


def test_quarantine_destroys_nothing_elsewhere(world: World, tmp_path: Path) -> None:
    secret, kept = tmp_path / "secret", tmp_path / "quarantine"
    secret.write_text("not ours")
    kept.mkdir()

    def destroy_expired() -> None:
        for _ in range(2):
            quarantine.destroy_expired(world.context, 1, quarantine=kept)
            world.pass_steadily(3600)

    world.change(TpmLedger, path=str(secret), role=LedgerRole.QUARANTINED, keep_until=now() - LONG_AGO)
    for path in (secret, kept / "link", kept / ".." / "secret"):
        world.change(TpmLedger, path=str(path))
        (kept / "link").unlink(missing_ok=True)
        (kept / "link").symlink_to(secret)
        destroy_expired()
        assert [role for _node, role, _epoch in world.ledger()] == ["quarantined"]
        assert secret.read_text() == "not ours"
    world.change(TpmLedger, path=str(kept / "state"))
    (kept / "state").write_text("ours")
    destroy_expired()
    assert [role for _node, role, _epoch in world.ledger()] == ["destroyed"]
    assert not (kept / "state").exists()


def test_scratch_copies_of_a_killed_worker_are_destroyed(world: World, tmp_path: Path) -> None:
    """A whole TPM each, under another name so that the bytes can be looked at."""
    layout = NodeLayout(tmp_path / "node", tmp_path / "run")
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_text("s" * 32)
    world.file()
    held = world.go(Phase.RESERVE)
    work = Work(world.context, held, world.view(), Allowance(world.context, held))
    work.layout = layout
    run_folder = work.place.run
    (run_folder / "identity-x").mkdir()
    copies = [run_folder / "identity-x" / "state", run_folder / f"tpm-{work.view.key}"]
    for number, copy in enumerate(copies):
        copy.write_bytes(b"seed")
        (tmp_path / f"{number}").hardlink_to(copy)
    for _ in range(2):
        asyncio.run(sync_tpm.undo(work))
    assert [(tmp_path / f"{number}").read_bytes() for number in range(2)] == [bytes(4)] * 2
    assert not any(copy.parent.exists() and copy.exists() for copy in copies)


def test_file_that_came_meanwhile_is_left_alone(world: World, tmp_path: Path) -> None:
    """Between `check`, which refuses it, and `reserve` somebody may put a file there; the undo must not free it."""
    layout = NodeLayout(tmp_path / "node", tmp_path / "run")
    layout.prepare()
    world.change(Storage, path=str(layout.images))
    world.file()
    held = world.go(Phase.RESERVE)
    work = Work(world.context, held, world.view(), Allowance(world.context, held))
    work.layout = layout
    assert work.view.tpm
    theirs = work.view.tpm.target_path
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    with pytest.raises(StepFailed, match="volume_exists"):
        reserve._make(work, work.view.tpm)
    assert allocated_volumes(world.context, work.view.attempt_id, work.view.target) == ()
    asyncio.run(reserve.undo(work))
    assert theirs.read_text() == "theirs"
    assert [role for _node, role, _epoch in world.ledger()] == ["active", "destroyed"]
