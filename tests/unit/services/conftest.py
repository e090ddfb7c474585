"""A world on a SQLite database: a fresh file for each test, and one engine for all of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from models import Database
from tests.unit.services.hall import open_hall
from tests.unit.services.world import Halves, World, open_world


@pytest.fixture(scope="session")
def world_template(tmp_path_factory: pytest.TempPathFactory, _sqlite_template: Path) -> Path:
    """A database with two nodes and the running VM `web` on alpha."""
    folder = tmp_path_factory.mktemp("world")
    file = shutil.copy(_sqlite_template, folder / "template.db")
    with open_world(Database(f"sqlite:///{file}"), folder) as world:
        world.populate()
        world.add_vm()
    return Path(file)


@pytest.fixture(scope="session")
def _engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """SQLAlchemy compiles each statement once an engine, and that costs more than the tests."""
    with closing(Database(f"sqlite:///{tmp_path_factory.mktemp('services') / 'haulier.db'}")) as database:
        yield database


@pytest.fixture
def database(_engine: Database, world_template: Path) -> Database:
    """The world's rows in a file that only this test sees."""
    renew(_engine, world_template)
    return _engine


def renew(database: Database, template: Path) -> None:
    """Put a fresh file in the place of the database's, which nobody has open."""
    database.close()
    path = Path(str(database.engine.url.database))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copy(template, path)


@pytest.fixture(scope="session")
def _halves_template(_engine: Database, world_template: Path) -> tuple[Path, Halves]:
    """The chain has been walked up to the switch-over, once for all tests that begin there."""
    renew(_engine, world_template)
    with open_world(_engine, world_template.parent) as world:
        world.file()
        halves = world.switch_over()
    return Path(shutil.copy(str(_engine.engine.url.database), world_template.with_name("halves.db"))), halves


@pytest.fixture
def halves(_engine: Database, _halves_template: tuple[Path, Halves], world: World) -> Halves:
    """The world's VM is in the middle of its switch-over: the claims of move_memory and hand_over."""
    template, halves = _halves_template
    renew(_engine, template)
    assert world.sent == []
    return halves


@pytest.fixture
def world(database: Database, tmp_path: Path) -> Iterator[World]:
    """Two nodes and the running VM `web` on alpha."""
    with open_world(database, tmp_path) as world:
        yield world


@pytest.fixture
def hall(world: World) -> World:
    """Four nodes of 16 GiB; `web` and two more VMs of 1 GiB run on alpha."""
    return open_hall(world)
