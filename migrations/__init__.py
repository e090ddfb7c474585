"""The schema's history, and the two calls the product needs of it: bring a database up to date, ask whether it is.

Works from a checkout and from a wheel (where it stands at haulier/_app/migrations), needs no alembic.ini, prints
nothing and leaves the application's logging alone. Knows the tables only through Alembic; never reads a row of them.
"""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import make_url

from migrations.connection import open_engine

FOLDER = Path(__file__).parent

# Alembic keeps its environment in a module-wide variable: two threads of one process would take each other's.
_one_at_a_time = threading.Lock()


def make_config(url: str, *, folder: Path = FOLDER) -> Config:
    """Alembic's configuration for the database at `url`, with the revisions that stand in `folder`."""
    config = Config()
    config.set_main_option("path_separator", "os")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    # Not an option of the ini file: that would read a `%` of a password as the start of a variable.
    config.attributes["url"] = url
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at `url` to the newest revision; does nothing if it is there.

    May be called by any number of processes at once: one works, the others wait for it. After a failure SQLite is as it
    was before the call; PostgreSQL stands at the last revision that went through.
    """
    with _one_at_a_time:
        command.upgrade(make_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the database at `url` back to `revision`, with what the later ones stored; `base` empties it."""
    with _one_at_a_time:
        command.downgrade(make_config(url), revision)


def is_current(url: str) -> bool:
    """Whether the database at `url` stands at the newest revision. A SQLite file that is missing stays missing."""
    location = make_url(url)
    if location.get_backend_name() == "sqlite" and not Path(location.database or "").is_file():
        return False
    engine = open_engine(url, read_only=True)
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_heads()
    finally:
        engine.dispose()
    return set(found) == set(ScriptDirectory.from_config(make_config(url)).get_heads())
