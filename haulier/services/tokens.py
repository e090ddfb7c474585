"""Tokens of the HTTP API: made, shown once, known again by their digest, taken away."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from haulier.clock import now
from haulier.errors import Refused
from haulier.services.context import Context
from haulier.services.lookup import unknown
from haulier.settings import NAME
from models import ApiToken, TokenScope

# So that one which got into a log or a repository is found by its look.
_PREFIX = "haulier_"


def add_token(context: Context, name: str, scope: TokenScope, *, expires_at: datetime | None = None) -> dict[str, Any]:
    """Make a token. What is returned holds it as `token`, this once. Raises Refused for a name that is none or taken,
    and for an end that is over.
    """
    if not NAME.fullmatch(name):
        raise Refused("bad_name", f"{name!r} is no name for a token", "Letters, digits, dot, dash and underscore.")
    if expires_at is not None and expires_at <= now():
        raise Refused("token_over", f"{expires_at.isoformat()} is in the past", "A moment to come, or 90d.")
    token = _PREFIX + secrets.token_urlsafe(32)
    try:
        with context.unit() as unit:
            row = ApiToken(name=name, digest=_digest(token), scope=scope, expires_at=expires_at, created_at=now())
            unit.session.add(row)
            unit.session.flush()
            unit.note("token.added", token=name, scope=scope)
            return {**_document(row), "token": token}
    except IntegrityError as error:
        if not any(word in str(error.orig) for word in ("uq_api_token_name", "api_token.name")):
            raise
        hint = f"haulier token remove {name}"
        raise Refused("token_exists", f"there is a token {name} already", hint) from error


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def scope_of(context: Context, token: str) -> TokenScope | None:
    """What a token is good for; None if it is none, or not any more."""
    with context.database.read() as session:
        row = session.scalar(select(ApiToken).where(ApiToken.digest == _digest(token)))
        is_over = row is not None and row.expires_at is not None and row.expires_at <= now()
        return None if row is None or is_over else row.scope


def list_tokens(context: Context) -> list[dict[str, Any]]:
    """All tokens by name, without themselves."""
    with context.database.read() as session:
        return [_document(row) for row in session.scalars(select(ApiToken).order_by(ApiToken.name))]


def remove_token(context: Context, name: str) -> dict[str, Any]:
    """Take a token away: the next call with it is refused. Raises Refused for an unknown one."""
    with context.unit() as unit:
        row = unit.session.scalar(select(ApiToken).where(ApiToken.name == name))
        if row is None:
            there = unit.session.scalars(select(ApiToken.name)).all()
            raise unknown("token", name, there, "haulier token list")
        document = _document(row)
        unit.session.execute(delete(ApiToken).where(ApiToken.id == row.id))
        unit.note("token.removed", token=name)
        return document


def _document(row: ApiToken) -> dict[str, Any]:
    return {
        "name": row.name,
        "scope": row.scope,
        "expires_at": row.expires_at and row.expires_at.isoformat(),
        "created_at": row.created_at.isoformat(),
    }
