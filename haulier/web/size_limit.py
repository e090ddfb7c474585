"""Nobody sends more than a call can need, token or none: what is read is kept in memory."""

from __future__ import annotations

from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from haulier.errors import Problem
from haulier.web.problems import answer

# A thousand alerts with labels of a kilobyte.
MOST_BYTES = 1 << 20


class SizeLimit:
    """Wraps an app; a body that is too long is answered before the app has seen all of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await _read(receive)
        if body is None:
            problem = Problem("body_too_long", f"a body has at most {MOST_BYTES} bytes", "Send less at once.")
            await answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, problem)(scope, receive, send)
            return
        waiting = [body]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, again, send)


async def _read(receive: Receive) -> Message | None:
    """All of the body as one message; None if it is too long."""
    parts, length = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return message
        part: bytes = message.get("body", b"")
        length += len(part)
        if length > MOST_BYTES:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return {"type": "http.request", "body": b"".join(parts), "more_body": False}
