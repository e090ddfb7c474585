"""Where the HTTP API of a stack is: it listens, writes down its URL, and whoever starts it looks there."""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from haulier.errors import Refused
from haulier.settings import Settings

# Another stack of this machine may have it; then any will do, unless one was asked for.
_USUAL_PORT = 8420
_ANSWER_S = 2.0


def listen(settings: Settings) -> socket.socket:
    """A socket at the address and port of the settings. Raises Refused for such as cannot be had, and for half a
    certificate.
    """
    if (settings.web_certificate is None) is not (settings.web_key is None):
        hint = "HAULIER_WEB_CERTIFICATE and HAULIER_WEB_KEY."
        raise Refused("bad_setting", "a certificate and its key go together", hint)
    for file in filter(None, (settings.web_certificate, settings.web_key)):
        if not file.is_file():
            raise Refused("bad_setting", f"{file} is no file", "HAULIER_WEB_CERTIFICATE, HAULIER_WEB_KEY")
    if settings.web_port is not None:
        return _listen(settings.web_address, settings.web_port)
    try:
        return _listen(settings.web_address, _USUAL_PORT)
    except Refused:
        return _listen(settings.web_address, 0)


def _listen(address: str, port: int) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family, backlog=128)
    except socket.gaierror as error:
        raise Refused("bad_address", f"{address!r} is no address of this machine", "HAULIER_WEB_ADDRESS") from error
    except (OSError, UnicodeError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "no such address"
        words = f"{address} port {port} cannot be listened on: {why}"
        raise Refused("web_port_taken", words, "HAULIER_WEB_ADDRESS, HAULIER_WEB_PORT; port 0 takes any.") from error


def url_file(settings: Settings) -> Path:
    """Where the URL is written down."""
    return settings.state / "web.url"


def note_url(settings: Settings, listener: socket.socket) -> str:
    """Write down where this socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    # Where it listens everywhere, it does here.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
    scheme = "https" if settings.web_certificate else "http"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    file = url_file(settings)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Whoever reads it in this moment finds the one or the other.
    fresh = file.with_suffix(".new")
    fresh.write_text(url + "\n")
    fresh.rename(file)
    return url


def web_url(settings: Settings) -> str | None:
    """Where the API is, if it answers there."""
    try:
        url = url_file(settings).read_text().strip()
        return url if _answers(url) else None
    except (OSError, HTTPException):
        return None


def _answers(url: str) -> bool:
    place = urlsplit(url)
    # Only whether somebody is there is asked, over the loopback: a certificate may be for another name.
    unchecked = ssl._create_unverified_context()  # noqa: S323
    connection = (
        HTTPSConnection(place.netloc, timeout=_ANSWER_S, context=unchecked)
        if place.scheme == "https"
        else HTTPConnection(place.netloc, timeout=_ANSWER_S)
    )
    with closing(connection):
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
