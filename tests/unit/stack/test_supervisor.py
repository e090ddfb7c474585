"""A supervisord that is just ending."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from haulier.settings import Settings
from haulier.stack.supervisor import find_supervisor

HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 400\r\n\r\n"


@contextmanager
def answering(words: bytes) -> Iterator[Settings]:
    """Somebody at the supervisor's socket who says this to whoever asks, and hangs up."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        settings = Settings(state=Path(folder))
        settings.sockets.mkdir()
        listener.bind(str(settings.sockets / "supervisor.sock"))
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(words)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield settings
        finally:
            thread.join()


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"HTT",
        HEAD,
        HEAD + b"<?xml version=",
        HEAD.replace(b"400", b"0"),
        b"HTTP/1.0 500 No\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_answer_that_breaks_off_is_none(words: bytes) -> None:
    with answering(words) as settings:
        assert find_supervisor(settings) is None


def test_nobody_is_there(tmp_path: Path) -> None:
    assert find_supervisor(Settings(state=tmp_path)) is None
