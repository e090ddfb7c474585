"""A world on a SQLite database of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from models import Database
from tests.unit.services.world import World, open_world


@pytest.fixture(scope="session")
def _engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One engine for all tests: SQLAlchemy compiles each statement once an engine, which costs more than the tests."""
    with closing(Database(f"sqlite:///{tmp_path_factory.mktemp('services') / 'haulier.db'}")) as database:
        yield database


@pytest.fixture
def database(_engine: Database, _sqlite_template: Path) -> Database:
    """A database at the newest revision without any row."""
    renew(_engine, _sqlite_template)
    return _engine


def renew(database: Database, template: Path) -> None:
    """Put a fresh file in the place of the database's, which nobody has open."""
    database.close()
    path = Path(str(database.engine.url.database))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copy(template, path)


@pytest.fixture
def world(database: Database, tmp_path: Path) -> Iterator[World]:
    """Two nodes and the running VM `web` on alpha."""
    with open_world(database, tmp_path) as world:
        world.add_vm()
        yield world
