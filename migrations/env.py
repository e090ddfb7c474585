"""What Alembic runs for every command: where the database is, what the models say, how a new revision is written.

The address comes from the program (`migrations.chain`), else from `-x url=…`, else from HAULIER_DATABASE_URL. Never
sets up logging and never prints: this runs inside the application too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from migrations.connection import revision_connection
from models import Base
from models.base import UtcDateTime


def database_url() -> str:
    """The address of the database to work on."""
    url = (
        context.config.attributes.get("url")
        or context.get_x_argument(as_dictionary=True).get("url")
        or os.environ.get("HAULIER_DATABASE_URL")
    )
    if not url:
        raise CommandError(
            "no database given: set HAULIER_DATABASE_URL or use `alembic -x url=sqlite:////path/to/file …`"
        )
    return str(url)


def render_item(kind: str, item: Any, _autogen: AutogenContext) -> str | Literal[False]:
    """Write our own column type as the plain one it stands for: a revision must not import today's models."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


def number_revision(
    _context: MigrationContext, _revision: str | Iterable[str | None], directives: list[MigrationScript]
) -> None:
    """Number revisions 0001, 0002, … so that their files stand in their order; a number given by hand stays."""
    script = ScriptDirectory.from_config(context.config)
    given = getattr(context.config.cmd_opts, "rev_id", None)
    if not given:
        directives[0].rev_id = f"{int(script.get_current_head() or 0) + 1:04d}"


def configure(**where: Any) -> None:
    """Tell Alembic how to compare and to write; batch mode always, because SQLite has hardly any ALTER TABLE."""
    context.configure(
        target_metadata=Base.metadata,
        render_as_batch=True,
        render_item=render_item,
        process_revision_directives=number_revision,
        transaction_per_migration=True,
        **where,
    )


def run_offline() -> None:
    """Write the SQL for a database administrator (`--sql`) instead of running it."""
    configure(url=database_url(), literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    """Run the revisions while no other process can."""
    with revision_connection(database_url()) as connection:
        configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
