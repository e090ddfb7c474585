"""What went wrong, as a problem document (RFC 9457) with the code, the message and the hint that every error has."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException

from haulier.errors import HaulierError, NeedsOperator, Problem, Refused, Transient
from haulier.web.documents import Reason

log = structlog.get_logger()
MEDIA_TYPE = "application/problem+json"
# What a call itself is refused for, and not the thing that it is about.
_STATUS = {
    "no_token": HTTPStatus.UNAUTHORIZED,
    "bad_token": HTTPStatus.UNAUTHORIZED,
    "token_scope": HTTPStatus.FORBIDDEN,
}


class ProblemDocument(BaseModel):
    """The body of every answer that is no success."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    message: str
    hint: str
    errors: list[Reason]


def install(app: FastAPI) -> None:
    """Have every error of an app answered by a problem document."""
    app.add_exception_handler(HaulierError, _haulier)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(HTTPException, _http)
    for away in (OperationalError, InterfaceError, TimeoutError):
        app.add_exception_handler(away, _database)
    app.add_exception_handler(Exception, _unexpected)


def answer(status: int, *problems: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem document; the first problem stands for all."""
    first = problems[0]
    document = ProblemDocument(
        type=f"urn:haulier:problem:{first.code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=first.message,
        code=first.code,
        message=first.message,
        hint=first.hint,
        errors=[Reason(**problem.as_dict()) for problem in problems],
    )
    return JSONResponse(document.model_dump(), status, headers=headers, media_type=MEDIA_TYPE)


def _status_of(error: HaulierError) -> int:
    if isinstance(error, Refused):
        if error.code in _STATUS:
            return _STATUS[error.code]
        return HTTPStatus.NOT_FOUND if error.code.startswith("unknown_") else HTTPStatus.CONFLICT
    if isinstance(error, Transient):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.CONFLICT if isinstance(error, NeedsOperator) else HTTPStatus.INTERNAL_SERVER_ERROR


async def _haulier(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HaulierError)  # noqa: S101 - for the types: it is registered for these
    problems = error.problems if isinstance(error, Refused) else (error.problem,)
    status = _status_of(error)
    return answer(status, *problems, headers=_headers(error, status))


def _headers(error: HaulierError, status: int) -> dict[str, str] | None:
    if isinstance(error, Transient):
        return {"Retry-After": f"{error.retry_after_s:.0f}"}
    return {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else None


async def _unreadable(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return answer(HTTPStatus.UNPROCESSABLE_ENTITY, *(_problem_of(each) for each in error.errors()))


def _problem_of(each: dict[str, Any]) -> Problem:
    place = ".".join(str(part) for part in each["loc"])
    # A body that is sent as a form is read as text.
    hint = (
        "JSON, sent with Content-Type: application/json." if each["loc"] == ("body",) else "See /api/v1/openapi.json."
    )
    return Problem("bad_request", f"{place}: {each['msg']}", hint)


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    problem = Problem(code, str(error.detail), "See /api/v1/openapi.json.")
    return answer(error.status_code, problem, headers=dict(error.headers or {}))


async def _database(_: Request, error: Exception) -> JSONResponse:
    # Only the first line: the others are the statement, which carries what it would store.
    log.error("web.database", error=str(error).strip().splitlines()[0])
    problem = Problem("database_away", "the database does not answer", "Ask again; see the log of web.")
    return answer(HTTPStatus.SERVICE_UNAVAILABLE, problem, headers={"Retry-After": "5"})


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("web.failed", path=request.url.path, exc_info=error)
    problem = Problem("internal", "this call failed in a way that nobody foresaw", "See the log of web.")
    return answer(HTTPStatus.INTERNAL_SERVER_ERROR, problem)
