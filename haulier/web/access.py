"""Who may call: a bearer token, and what it is good for."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import Depends, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from haulier.errors import Refused
from haulier.services.context import Context
from haulier.services.tokens import scope_of
from models import TokenScope

_bearer = HTTPBearer(auto_error=False, description="`haulier token add NAME`")
_READS = (TokenScope.READ, TokenScope.WRITE)
_DELIVERS = (TokenScope.HOOK, TokenScope.WRITE)


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Around = Annotated[Context, Depends(_context)]
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def _require(context: Context, given: HTTPAuthorizationCredentials | None, *scopes: TokenScope) -> None:
    if given is None:
        raise Refused("no_token", "this call needs a token", "Authorization: Bearer TOKEN; haulier token add NAME")
    scope = scope_of(context, given.credentials)
    if scope is None:
        raise Refused("bad_token", "this token is not known, or its time is over", "haulier token list")
    if scope not in scopes:
        words = f"a token of scope {scope} is not good for this call"
        raise Refused("token_scope", words, f"haulier token add NAME --scope {scopes[0]}")


def may_read(context: Around, given: _Credentials) -> None:
    """Raises Refused for whoever may not read."""
    _require(context, given, *_READS)


def may_write(context: Around, given: _Credentials) -> None:
    """Raises Refused for whoever may not change anything."""
    _require(context, given, TokenScope.WRITE)


def may_deliver(context: Around, given: _Credentials) -> None:
    """Raises Refused for whoever may not deliver alerts."""
    _require(context, given, *_DELIVERS)


class CallerFirst(APIRoute):
    """A call that asks who calls before it says anything of what was sent: the body is read before all else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As it was, but for bodies that cannot be read."""
        handle = super().get_route_handler()

        async def ask_first(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError:
                await self._ask(request)
                raise
            except HTTPException as error:
                await self._ask(request)
                if error.status_code != HTTPStatus.BAD_REQUEST:
                    raise
                raise RequestValidationError([{"loc": ("body",), "msg": str(error.detail)}]) from error

        return ask_first

    async def _ask(self, request: Request) -> None:
        context, given = _context(request), await _bearer(request)
        for each in self.dependencies:
            if each.dependency is not None:
                await run_sync(each.dependency, context, given)
