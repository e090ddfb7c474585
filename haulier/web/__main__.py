"""`python -m haulier.web`: serves the HTTP API where HAULIER_WEB_ADDRESS and HAULIER_WEB_PORT say."""

from __future__ import annotations

import ssl
import sys

import structlog
import uvicorn

from haulier.errors import HaulierError, Refused
from haulier.logs import configure_logs
from haulier.settings import Settings, load_settings
from haulier.stack.web import listen, note_url
from haulier.web.app import make_app
from tasks.surroundings import make_context

log = structlog.get_logger()


def main() -> int:
    """Serve until it is told to end."""
    configure_logs()
    try:
        return _serve(load_settings())
    except HaulierError as error:
        log.error("web.refused", **error.problem.as_dict())  # noqa: TRY400 - it says all that there is
        return 2


def _serve(settings: Settings) -> int:
    config = uvicorn.Config(
        make_app(make_context(settings)),
        log_level="warning",
        # Its lines go where ours go.
        log_config=None,
        ssl_certfile=settings.web_certificate,
        ssl_keyfile=settings.web_key,
        # Nobody else may say where a call comes from.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        words = f"the certificate cannot be used: {error}"
        raise Refused("bad_setting", words, "HAULIER_WEB_CERTIFICATE, HAULIER_WEB_KEY") from error
    listener = listen(settings)
    note_url(settings, listener)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
