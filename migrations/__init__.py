"""The schema's history: the revisions in `versions/`, brought to a database by `migrations.chain`.

Works from a checkout and from a wheel (where it stands at haulier/_app/migrations). Knows the tables only through
Alembic; never reads a row of them. What every command asks first, whether the database is up to date, is answered here
without Alembic, which takes longer to load than most commands to run.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import inspect, make_url, text

from migrations.connection import open_engine

# The newest revision; a test compares it with `versions/`.
HEAD = "0021"


def is_current(url: str) -> bool:
    """Whether the database at `url` stands at the newest revision. A SQLite file that is missing stays missing."""
    location = make_url(url)
    if location.get_backend_name() == "sqlite" and not Path(location.database or "").is_file():
        return False
    engine = open_engine(url, read_only=True)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return False
            return set(connection.scalars(text("SELECT version_num FROM alembic_version"))) == {HEAD}
    finally:
        engine.dispose()
