"""Shares on a PostgreSQL: who divides is in nobody's way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from haulier.services.bandwidth import divide_anew, give_back, take_share
from models import Database
from tests.unit.services.test_bandwidth import MIB, allow, mirroring
from tests.unit.services.world import World, open_world


@pytest.fixture
def world(postgres_url: str, tmp_path: Path) -> Iterator[World]:
    with open_world(Database(postgres_url), tmp_path) as world:
        world.populate()
        world.add_vm()
        yield world


def test_who_cannot_divide_at_once_keeps_what_it_has(world: World) -> None:
    allow(world, 10 * MIB)
    held = mirroring(world, "web")
    with world.context.database.write() as session:
        world.context.database.exclude_others(session, 2)
        with pytest.raises(OperationalError, match="lock timeout"):
            take_share(world.context, held, using=0)
        divide_anew(world.context)
        give_back(world.context, held)
    assert take_share(world.context, held, using=0) == 10 * MIB
