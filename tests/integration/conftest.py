"""An engine on the test's database, closed at the end: an open connection would be reported as a leak."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from models import make_engine


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """The application's own engine on a database at the newest revision, SQLite and PostgreSQL in turn."""
    engine = make_engine(database_url)
    yield engine
    engine.dispose()
