"""What every command needs around it: settings, and a database that is there and up to date."""

from __future__ import annotations

import functools

from sqlalchemy.exc import OperationalError

import migrations
from haulier.errors import Refused
from haulier.services.context import Context
from haulier.settings import load_settings
from tasks.surroundings import make_context


@functools.cache
def bare_context() -> Context:
    """The surroundings without a look at the database."""
    return make_context(load_settings())


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
