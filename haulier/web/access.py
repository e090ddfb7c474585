"""Who may call: a bearer token, and what it is good for."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

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
