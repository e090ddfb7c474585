"""The VM `web` runs on alpha, in a world that can be put back to the beginning of any phase of its move to beta."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import Database, Phase
from tests.model.stand_ins import in_place
from tests.model.strands import Clock
from tests.model.world import Beginnings, Model, walk
from tests.unit.services.world import open_world


@pytest.fixture(scope="module")
def model(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder, clock = tmp_path_factory.mktemp("model"), Clock()
    template = Path(shutil.copy(_sqlite_template, folder / "template.db"))
    with open_world(Database(f"sqlite:///{template}"), folder) as world:
        world.populate()
        world.add_vm()
    gc.collect()
    gc.freeze()  # of what is loaded nothing goes any more, and looking at it costs a tenth of the time
    with in_place(clock):
        found = Model(template, folder, clock)
        yield found
        found.close()
    gc.unfreeze()


@pytest.fixture(scope="module")
def beginnings(model: Model) -> Beginnings:
    """The chain is walked twice, with a guest that runs and with one that is paused."""
    untouched = model.snapshot()
    found: Beginnings = {}
    for paused in (False, True):
        model.restore(untouched)
        if paused:
            model.pause_guest()
        model.world.file()
        found |= {(Phase(phase), paused): saved for phase, saved in walk(model)}
        assert model.world.state() == "done", model.ask("SELECT phase, problem FROM step")
    return found
