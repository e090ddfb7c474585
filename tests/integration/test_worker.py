"""A real worker and a real broker: how messages are taken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.acceptance.waiting import wait_until
from tests.integration.naps import app, nap

NAPS = 100


@pytest.fixture
def worker(valkey_url: str, tmp_path: Path) -> Iterator[None]:
    """Two threads, and the broker that the app of this process sends to."""
    app.conf.update(broker_url=valkey_url)
    words = ["worker", "--pool", "threads", "--concurrency", "2", "--without-gossip", "--without-mingle"]
    command = [sys.executable, "-m", "celery", "-A", "tests.integration.naps", *words]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "NAPS_BROKER": valkey_url}, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def test_messages_are_taken_as_soon_as_a_thread_is_free(worker: None, valkey_url: str) -> None:
    """Without a word to its loop the worker takes a handful, and the next ones ten seconds later."""
    for _ in range(NAPS):
        nap.delay(0.02)
    client = redis.Redis.from_url(valkey_url)
    wait_until("all naps", lambda: client.get("naps") == str(NAPS).encode(), deadline_s=25)
