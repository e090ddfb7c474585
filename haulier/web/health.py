"""Whether this process lives, and whether all that it needs does."""

from __future__ import annotations

import threading
from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

import migrations
from haulier.clock import Pace, steady_s
from haulier.errors import Problem
from haulier.services.context import Context
from haulier.web.problems import ProblemDocument, answer
from tasks.surroundings import control_answers

router = APIRouter(tags=["health"])
# Anybody may ask, and each look costs the others something.
_EVERY_S = 2.0
# A look takes no longer, unless what it asks hangs.
_GOOD_FOR_S = 10.0
_NOT_LOOKED = Problem("not_looked_yet", "it is being looked what is there", "Ask again.")


class Health(BaseModel):
    """All is well."""

    status: str = "ok"


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def live() -> Health:
    """This process answers. Asks nobody else, and needs none of the threads that calls are answered in."""
    return Health()


@router.head("/readyz", response_model=Health, include_in_schema=False)
@router.get(
    "/readyz",
    response_model=Health,
    responses={HTTPStatus.SERVICE_UNAVAILABLE.value: {"model": ProblemDocument, "description": "What is missing."}},
)
def ready(request: Request) -> Health | JSONResponse:
    """The database is there and up to date, and so are the broker and a control worker."""
    readiness: Readiness = request.app.state.readiness
    missing = readiness.missing()
    return answer(HTTPStatus.SERVICE_UNAVAILABLE, *missing) if missing else Health()


class Readiness:
    """What is missing. One at a time looks at it, every two seconds at most, and the others get what was seen, unless
    that is old: whoever looks may hang, or nobody has asked for hours.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pace = Pace(_EVERY_S)
        self._looking = threading.Lock()
        self._missing: tuple[Problem, ...] = (_NOT_LOOKED,)
        self._seen_s = steady_s()

    def missing(self) -> tuple[Problem, ...]:
        """The reasons why not all is there."""
        if self._looking.acquire(blocking=False):
            try:
                if self._pace.is_due():
                    self._missing = (*_database(self._context), *_control(self._context))
                    self._seen_s = steady_s()
            finally:
                self._looking.release()
        return self._missing if steady_s() - self._seen_s < _GOOD_FOR_S else (_NOT_LOOKED,)


def _database(context: Context) -> list[Problem]:
    try:
        if migrations.is_current(context.settings.database):
            return []
    except SQLAlchemyError:
        return [Problem("database_away", "the database does not answer", "HAULIER_DATABASE_URL")]
    return [Problem("database_not_ready", "the database is not in its newest form", "haulier up, or make migrate")]


def _control(context: Context) -> list[Problem]:
    if not context.signals.answers():
        return [Problem("broker_away", "the broker does not answer", "HAULIER_BROKER_URL")]
    if not control_answers():
        return [Problem("control_away", "no control worker answers by the broker", "Look at the log of control.")]
    return []
