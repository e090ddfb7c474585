"""Whether this process lives, and whether all that it needs does."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

import migrations
from haulier.errors import Problem
from haulier.services.context import Context
from haulier.web.problems import answer
from tasks.surroundings import control_answers

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """All is well."""

    status: str = "ok"


@router.get("/healthz")
def live() -> Health:
    """This process answers. Asks nobody else."""
    return Health()


@router.get("/readyz", response_model=Health)
def ready(request: Request) -> Health | JSONResponse:
    """The database is there and up to date, and so are the broker and a control worker."""
    context: Context = request.app.state.context
    missing = [*_database(context), *_control()]
    return answer(HTTPStatus.SERVICE_UNAVAILABLE, *missing) if missing else Health()


def _database(context: Context) -> list[Problem]:
    try:
        if migrations.is_current(context.settings.database):
            return []
    except SQLAlchemyError:
        return [Problem("database_away", "the database does not answer", "HAULIER_DATABASE_URL")]
    return [Problem("database_not_ready", "the database is not in its newest form", "haulier up, or make migrate")]


def _control() -> list[Problem]:
    if control_answers():
        return []
    return [
        Problem("control_away", "no control worker answers by the broker", "HAULIER_BROKER_URL; the log of control")
    ]
