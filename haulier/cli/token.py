"""`haulier token …`."""

from __future__ import annotations

from cyclopts import App

from haulier.cli.around import context
from haulier.cli.moments import deadline_of
from haulier.cli.output import show, table
from haulier.services import tokens
from models import TokenScope

app = App(name="token", help="Say who may call the HTTP API.")


@app.command
def add(name: str, /, *, scope: TokenScope = TokenScope.READ, expires: str | None = None) -> None:
    """Make a token, and show it this once.

    Parameters
    ----------
    name
        A name for it, by which it is taken away again.
    scope
        read: see everything; write: change things too; hook: deliver alerts, and nothing else.
    expires
        When it ends: a moment, or an interval from now on such as 90d. Not given: never.
    """
    document = tokens.add_token(context(), name, scope, expires_at=deadline_of(expires) if expires else None)
    show(document, f"{document['token']}\n(it is shown this once; {name} may {_may(document)})")


def _may(document: dict[str, str]) -> str:
    words = {TokenScope.READ: "read", TokenScope.WRITE: "read and change", TokenScope.HOOK: "deliver alerts"}
    until = f" until {document['expires_at']}" if document["expires_at"] else ""
    return words[TokenScope(document["scope"])] + until


@app.command(name="list")
def list_() -> None:
    """All tokens, without themselves."""
    documents = tokens.list_tokens(context())
    columns = {"name": "name", "scope": "scope", "expires": "expires_at", "made": "created_at"}
    show(documents, table(documents, columns))


@app.command
def remove(name: str, /) -> None:
    """Take a token away: the next call with it is refused."""
    show(tokens.remove_token(context(), name), f"removed token {name}")
