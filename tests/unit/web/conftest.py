"""The API around a world on a SQLite database, called without a socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from haulier.services.tokens import add_token
from haulier.web.app import make_app
from models import TokenScope
from tests.unit.services.conftest import (  # noqa: F401 - the fixtures of a world are its too
    _engine,
    database,
    hall,
    world,
    world_template,
)
from tests.unit.services.world import World


@pytest.fixture
def client(hall: World) -> Iterator[TestClient]:  # noqa: F811
    """Calls of somebody who has no token yet."""
    with TestClient(make_app(hall.context), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def reader(client: TestClient, hall: World) -> TestClient:  # noqa: F811
    """Calls of somebody who may read."""
    return as_one(client, hall, TokenScope.READ)


@pytest.fixture
def writer(client: TestClient, hall: World) -> TestClient:  # noqa: F811
    """Calls of somebody who may do everything."""
    return as_one(client, hall, TokenScope.WRITE)


@pytest.fixture
def deliverer(client: TestClient, hall: World) -> TestClient:  # noqa: F811
    """Calls of Alertmanager."""
    return as_one(client, hall, TokenScope.HOOK)


def as_one(client: TestClient, world: World, scope: TokenScope) -> TestClient:  # noqa: F811
    """The same client with a token of this scope."""
    client.headers["Authorization"] = f"Bearer {add_token(world.context, scope.value, scope)['token']}"
    return client
