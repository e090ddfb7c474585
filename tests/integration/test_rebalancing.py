"""Several that rebalance at one moment: there is one batch, and nobody's room is given away twice."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from haulier.errors import Refused
from haulier.services.rebalancing import rebalance
from models import Batch, Database, Migration
from tests.unit.services.hall import hold, open_hall
from tests.unit.services.world import World, open_world

AT_ONCE = 4


@pytest.fixture
def hall(database_url: str, tmp_path: Path) -> Iterator[World]:
    with open_world(Database(database_url), tmp_path) as world:
        world.populate()
        world.add_vm()
        yield open_hall(world)


def test_of_many_at_one_moment_one_files_and_the_others_are_told(hall: World) -> None:
    hold(hall)

    def ask(_: int) -> str:
        try:
            return str(rebalance(hall.context, moves=1)["batch"])
        except Refused as error:
            return error.code

    with ThreadPoolExecutor(AT_ONCE) as pool:
        told = sorted(pool.map(ask, range(AT_ONCE)))
    assert told == ["1", *["rebalance_open"] * (AT_ONCE - 1)]
    assert (hall.count(Batch), hall.count(Migration)) == (1, 1)
    assert hall.kinds("rebalance.") == ["placed"]
