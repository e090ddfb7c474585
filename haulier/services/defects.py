"""An error that nobody raised on purpose, as a row tells of it."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, TimeoutError

from haulier.errors import HaulierError, Problem, Refused

# What a PostgreSQL answers that has become another's standby.
_READS_ONLY = "25006"


def problems_of(error: Exception) -> tuple[Problem, ...]:
    """The reasons that an error gives; of one that is a defect, what it is.

    A database's own error is told without the statement: that carries what it would store.
    """
    if isinstance(error, Refused):
        return error.problems
    if isinstance(error, HaulierError):
        return (error.problem,)
    text = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(error, TimeoutError) or (isinstance(error, DBAPIError) and _is_databases(error)):
        words = " ".join(str(text).split())
        return (Problem("database_failed", f"the database failed: {words}", "See its log."),)
    return (Problem("unexpected", f"{type(error).__name__}: {text}", "See the worker's log."),)


def _is_databases(error: DBAPIError) -> bool:
    """Whether it is about the database, which may be well again in a moment, and not about what was asked of it."""
    if error.connection_invalidated or getattr(error.orig, "sqlstate", None) == _READS_ONLY:
        return True
    # SQLite says so of a statement that is wrong, too.
    wrong = getattr(error.orig, "sqlite_errorname", None) == "SQLITE_ERROR"
    return isinstance(error, OperationalError | InterfaceError) and not wrong
