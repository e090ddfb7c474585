"""Alembic's commands, as the product calls them. Needs no alembic.ini, prints nothing, leaves logging alone."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config

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
