"""A worker that dies anywhere in `reserve` leaves nothing that its undo does not find."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select

from haulier.hypervisor.layout import NodeLayout
from haulier.hypervisor.storage import folder
from models import Allocation, LedgerRole, Phase, Storage, TpmLedger
from tasks import reserve
from tasks.bandwidth import Allowance
from tasks.runner import StepRun
from tasks.surroundings import ThisNode
from tests.unit.services.world import World


class Work(StepRun):
    """A step on the node whose folders are given."""

    layout: NodeLayout

    @property
    def node(self) -> ThisNode:
        return ThisNode("beta", self.layout)


class Killed(BaseException):
    """The worker is not there any more."""


@pytest.mark.parametrize("place", ["take_memory", "take_volume", "reserve_copy", "create_image", "_open_carrier"])
def test_worker_that_dies(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    layout = NodeLayout(tmp_path / "node", tmp_path / "run")
    layout.prepare()
    world.change(Storage, path=str(layout.images))
    world.file()
    held = world.go(Phase.RESERVE)
    work = Work(world.context, held, world.view(), Allowance(world.context, held))
    work.layout = layout
    assert work.view.tpm
    room = folder if place == "create_image" else reserve
    volume, real = work.view.tpm.target_path, getattr(room, place)

    def die_at_the_tpm(*words: object, **more: object) -> object:
        if place in ("take_volume", "create_image") and volume not in words:
            return real(*words, **more)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(room, place, die_at_the_tpm)
        with pytest.raises(Killed):
            asyncio.run(reserve.run(work))
    for _ in range(2):
        asyncio.run(reserve.undo(work))
    with world.context.database.read() as session:
        assert session.scalars(select(Allocation).where(Allocation.freed_at.is_(None))).all() == []
        assert session.scalars(select(TpmLedger).where(TpmLedger.role == LedgerRole.RESERVED)).all() == []
    assert [path for path in layout.images.rglob("*") if path.is_file()] == []
