"""The app: all calls together."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI

from haulier import __version__
from haulier.services.context import Context
from haulier.web import evacuating, health, hooks, problems, reading
from haulier.web.problems import ProblemDocument
from haulier.web.size_limit import SizeLimit

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ProblemDocument, "description": "Refused; nothing was touched."},
    "5XX": {"model": ProblemDocument, "description": "It failed, or something is away."},
}


def make_app(context: Context) -> FastAPI:
    """An app around a context. It has no pages of its own that would load scripts from elsewhere."""
    app = FastAPI(
        title="Haulier",
        version=__version__,
        summary="The migration queue for QEMU/KVM hosts.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.context = context
    problems.install(app)
    calls = APIRouter(prefix="/api/v1", responses=_ERRORS)
    for each in (reading, evacuating, hooks):
        calls.include_router(each.router)
    app.include_router(calls)
    app.include_router(health.router)
    app.add_middleware(SizeLimit)
    return app
