"""The HTTP API of a real stack: started and ended with it, begun anew when it dies, and ready only with all of it."""

from __future__ import annotations

import re

from tests.acceptance.stack import Stack
from tests.acceptance.waiting import wait_until


def test_it_is_there_as_long_as_the_stack(stack: Stack) -> None:
    url = stack.up()["web"]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    assert stack.call("/healthz") == (200, {"status": "ok"})
    assert stack.call("/readyz")[0] == 200
    token = stack.haulier("token", "add", "reader").done()["token"]
    try:
        status, nodes = stack.call("/api/v1/nodes", token=token)
        assert (status, [node["name"] for node in nodes]) == (200, ["alpha", "beta"])
        assert (
            stack.call("/api/v1/nodes", token=token)[1][0].keys()
            == stack.haulier("node", "show", "alpha").done().keys()
        )
    finally:
        stack.haulier("token", "remove", "reader").done()
    assert stack.call("/api/v1/nodes", token=token)[0] == 401


def test_it_begins_anew_when_it_dies(stack: Stack) -> None:
    stack.kill("web")
    wait_until("the API is there again", lambda: stack.up()["web"] is not None)
    assert stack.call("/healthz")[0] == 200


def test_it_is_not_ready_without_a_control_worker(stack: Stack) -> None:
    stack.supervisor("stopProcess", "control")
    try:
        status, document = stack.call("/readyz")
        assert (status, document["code"]) == (503, "control_away")
        assert stack.call("/healthz")[0] == 200
    finally:
        stack.supervisor("startProcess", "control")
    wait_until("it is ready", lambda: stack.call("/readyz")[0] == 200)
