"""What every command needs around it: settings, and a database that is there and up to date."""

from __future__ import annotations

import functools

from sqlalchemy.exc import ArgumentError, OperationalError

import migrations
from haulier.errors import Refused
from haulier.services.context import Context, Message
from haulier.settings import load_settings
from haulier.signals import Signals
from models import Database


@functools.cache
def bare_context() -> Context:
    """The surroundings without a look at the database. Raises Refused for settings that cannot be."""
    settings = load_settings()
    try:
        database = Database(settings.database)
    except ArgumentError as error:
        raise Refused("bad_setting", "HAULIER_DATABASE_URL is no database's URL", "See README.md.") from error
    return Context(settings, database, Signals(settings.broker), _dispatch)


def _dispatch(message: Message) -> None:
    # Celery takes longer to load than most commands to run, and most send nothing.
    from tasks.surroundings import dispatch  # noqa: PLC0415

    dispatch(message)


def context() -> Context:
    """The surroundings of a command that needs the database. Raises Refused when it is not there or not up to date."""
    around = bare_context()
    try:
        current = migrations.is_current(around.settings.database)
    except OperationalError as error:
        words = str(error.orig).strip().splitlines()[0]
        raise Refused("database_away", f"the database does not answer: {words}", "HAULIER_DATABASE_URL") from error
    if not current:
        raise Refused(
            "database_not_ready",
            "there is no database in its newest form",
            "Start the stack with `haulier up`, or bring the database up to date with `make migrate`.",
        )
    return around
