"""An error that nobody raised on purpose, as a row tells of it."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from haulier.errors import HaulierError, Problem, Refused


def problems_of(error: Exception) -> tuple[Problem, ...]:
    """The reasons that an error gives; of one that is a defect, what it is.

    A database's own error is told without the statement: that carries what it would store.
    """
    if isinstance(error, Refused):
        return error.problems
    if isinstance(error, HaulierError):
        return (error.problem,)
    text = error.orig if isinstance(error, DBAPIError) else error
    return (Problem("unexpected", f"{type(error).__name__}: {text}", "See the worker's log."),)
