"""The app: all calls together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import APIRouter, FastAPI

from haulier import __version__
from haulier.services.context import Context
from haulier.web import evacuating, health, hooks, problems, reading
from haulier.web.health import Readiness
from haulier.web.problems import MEDIA_TYPE, ProblemDocument
from haulier.web.size_limit import SizeLimit

_THREADS = 12
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ProblemDocument, "description": "Refused; nothing was touched."},
    "5XX": {"model": ProblemDocument, "description": "It failed, or something is away."},
}


class _App(FastAPI):
    """Describes problem documents as what they are: by itself it writes all models down as application/json."""

    def openapi(self) -> dict[str, Any]:
        """What /api/v1/openapi.json says."""
        if self.openapi_schema is None:
            for call in (call for calls in super().openapi()["paths"].values() for call in calls.values()):
                for status, response in call["responses"].items():
                    if not status.startswith("2"):
                        response["content"] = {MEDIA_TYPE: response["content"]["application/json"]}
        return super().openapi()


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Fewer threads than the database has connections for: who gets one has the other."""
    current_default_thread_limiter().total_tokens = _THREADS
    yield


def make_app(context: Context) -> FastAPI:
    """An app around a context. It has no pages of its own that would load scripts from elsewhere."""
    app = _App(
        title="Haulier",
        version=__version__,
        summary="The migration queue for QEMU/KVM hosts.",
        lifespan=_lifespan,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.context = context
    app.state.readiness = Readiness(context)
    problems.install(app)
    calls = APIRouter(prefix="/api/v1", responses=_ERRORS)
    for each in (reading, evacuating, hooks):
        calls.include_router(each.router)
    app.include_router(calls)
    app.include_router(health.router)
    app.add_middleware(SizeLimit)
    return app
