"""The API says what the use-cases say, lets in whom it should, and answers every error with a problem document."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError, ProgrammingError
from structlog.testing import capture_logs

import haulier.clock
from haulier.clock import now
from haulier.errors import Problem
from haulier.services import alerts, evacuation_view, evacuations, migrations, nodes, vms
from haulier.services.alert_rules import Answer, add_rule
from haulier.web import documents, health
from haulier.web.planning import one_of_few
from haulier.web.problems import ProblemDocument
from haulier.web.size_limit import MOST_BYTES
from models import Alert, AlertAction, Evacuation, Migration, TokenScope
from tests.unit.services.hall import hold, play, state_of
from tests.unit.services.world import World
from tests.unit.web.conftest import as_one

READING = (
    "/nodes",
    "/nodes/alpha",
    "/vms",
    "/vms/web",
    "/migrations",
    "/migrations/1",
    "/evacuations",
    "/evacuations/1",
)
DELIVERY: dict[str, Any] = {
    "version": "4",
    "groupKey": "{}:{}",
    "truncatedAlerts": 0,
    "status": "firing",
    "receiver": "haulier",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "DiskFails", "instance": "alpha:9100"},
            "annotations": {"summary": "soon"},
            "startsAt": "2026-05-01T12:00:00.000Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://prometheus/graph",
            "fingerprint": "f00d",
        }
    ],
}


def problem_of(response: Any) -> ProblemDocument:
    assert response.headers["content-type"] == "application/problem+json"
    document = ProblemDocument.model_validate(response.json(), extra="forbid")
    assert document.status == response.status_code
    return document


@pytest.mark.parametrize("path", READING)
def test_reader_sees_what_is_there(reader: TestClient, hall: World, path: str) -> None:
    evacuations.evacuate(hall.context, "alpha")
    response = reader.get(f"/api/v1{path}")
    assert response.status_code == 200
    assert response.json()


def test_documents_are_those_of_the_use_cases(hall: World) -> None:
    """No key is lost or made up on the way, whatever state things are in."""

    def same(model: type[BaseModel], found: list[dict[str, Any]]) -> None:
        assert found
        for document in found:
            kept = model.model_validate(document, extra="forbid").model_dump(exclude_unset=True)
            assert kept.keys() == document.keys()

    def look() -> None:
        same(documents.Node, nodes.list_nodes(hall.context))
        same(documents.Vm, vms.list_vms(hall.context))
        same(documents.Migration, migrations.list_migrations(hall.context))
        same(documents.EvacuationHead, evacuation_view.list_evacuations(hall.context))
        same(documents.Evacuation, [evacuation_view.show_evacuation(hall.context, 1)])

    same(documents.Plan, [evacuations.plan_evacuation(hall.context, "alpha")])
    hold(hall)
    same(documents.Evacuation, [evacuations.evacuate(hall.context, "alpha")])
    look()
    hall.change(Migration, Migration.id == 1, cancel_asked=True)
    evacuations.cancel(hall.context, 1, undo=True)
    look()


def test_work_that_is_done_is_shown(reader: TestClient, hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    document = reader.get("/api/v1/evacuations/1").json()
    assert (document["state"], document["counts"]) == ("drained", {"done": 3})
    migration = reader.get("/api/v1/migrations/1").json()
    assert (migration["state"], len(migration["phases"])) == ("done", 11)


def test_pages(reader: TestClient, hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    names = [each["name"] for each in reader.get("/api/v1/vms?limit=2").json()]
    assert names == ["db", "mail"]
    assert [each["name"] for each in reader.get("/api/v1/vms?after=mail").json()] == ["web"]
    assert [each["name"] for each in reader.get("/api/v1/nodes?after=beta&limit=1").json()] == ["delta"]
    assert [each["id"] for each in reader.get("/api/v1/migrations?before=3&limit=1").json()] == [2]
    assert reader.get("/api/v1/evacuations?before=1").json() == []
    assert problem_of(reader.get("/api/v1/vms?limit=0")).code == "bad_request"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nodes/omega", 404, "unknown_node"),
        ("/vms/omega", 404, "unknown_vm"),
        ("/migrations/7", 404, "unknown_migration"),
        ("/evacuations/99999999999999999999", 404, "unknown_evacuation"),
        ("/migrations/x", 422, "bad_request"),
        ("/nodes/%00", 422, "bad_request"),
        ("/vms?after=%00", 422, "bad_request"),
        ("/evacuations?before=99999999999999999999", 422, "bad_request"),
        ("/nothing", 404, "not_found"),
    ],
)
def test_what_is_not_there(reader: TestClient, path: str, status: int, code: str) -> None:
    response = reader.get(f"/api/v1{path}")
    assert (response.status_code, problem_of(response).code) == (status, code)


def test_wrong_method_is_a_problem_too(reader: TestClient) -> None:
    response = reader.delete("/api/v1/nodes")
    assert (response.status_code, problem_of(response).code) == (405, "method_not_allowed")
    assert response.headers["allow"] == "GET"


# -- who may ----------------------------------------------------------------------------------------------------------


CALLS = [*(("GET", path) for path in READING), ("POST", "/evacuations"), ("POST", "/hooks/alertmanager")]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize("token", [None, "Bearer nonsense", "Basic YTpi", "Bearer "])
def test_nobody_is_let_in_without_a_token(client: TestClient, method: str, path: str, token: str | None) -> None:
    headers = {"Authorization": token} if token else {}
    response = client.request(method, f"/api/v1{path}", headers=headers, json={})
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    problem_of(response)


@pytest.mark.parametrize("path", ["/evacuations", "/hooks/alertmanager"])
@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"1" * 10_000, b"\xff"])
def test_who_calls_is_asked_before_what_he_sent_is_read(
    client: TestClient, hall: World, path: str, body: bytes
) -> None:
    headers = {"Content-Type": "application/json"}

    def post() -> tuple[int, str]:
        response = client.post(f"/api/v1{path}", content=body, headers=headers)
        return response.status_code, problem_of(response).code

    assert post() == (401, "no_token")
    as_one(client, hall, TokenScope.READ)
    assert post() == (403, "token_scope")
    as_one(client, hall, TokenScope.WRITE)
    assert post() == (422, "bad_request")


def test_body_that_is_sent_as_a_form_is_told_how_to_send_it(writer: TestClient) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = writer.post("/api/v1/evacuations", content='{"node": "alpha"}', headers=headers)
    assert (answer.status_code, problem_of(answer).hint) == (422, "JSON, sent with Content-Type: application/json.")


def test_reader_changes_nothing(reader: TestClient, hall: World) -> None:
    response = reader.post("/api/v1/evacuations", json={"node": "alpha"})
    assert (response.status_code, problem_of(response).code) == (403, "token_scope")
    assert reader.post("/api/v1/hooks/alertmanager", json=DELIVERY).status_code == 403
    assert (hall.count(Evacuation), hall.count(Alert)) == (0, 0)


@pytest.mark.parametrize("path", READING)
def test_whoever_delivers_alerts_reads_nothing(deliverer: TestClient, path: str) -> None:
    assert deliverer.get(f"/api/v1{path}").status_code == 403
    assert deliverer.post("/api/v1/evacuations", json={"node": "alpha"}).status_code == 403


# -- evacuations ------------------------------------------------------------------------------------------------------


def test_node_is_emptied_by_a_call(writer: TestClient, hall: World) -> None:
    response = writer.post("/api/v1/evacuations", json={"node": "alpha"})
    assert (response.status_code, response.headers["location"]) == (202, "/api/v1/evacuations/1")
    assert writer.get(response.headers["location"]).json()["state"] == "running"
    again = writer.post("/api/v1/evacuations", json={"node": "alpha"})
    assert (again.status_code, again.json()["again"], hall.count(Evacuation)) == (200, True, 1)


def test_plan_touches_nothing(writer: TestClient, hall: World) -> None:
    response = writer.post("/api/v1/evacuations", json={"node": "alpha", "plan": True})
    assert (response.status_code, len(response.json()["plan"])) == (200, 3)
    assert (hall.count(Evacuation), state_of(hall, "alpha")) == (0, "online")


@pytest.mark.parametrize(
    ("wish", "status", "code"),
    [
        ({"node": "omega"}, 404, "unknown_node"),
        ({"node": "alpha", "deadline": (now() + timedelta(seconds=0.001)).isoformat()}, 409, "deadline_over"),
        ({"node": "alpha", "deadline": "2026-05-01T12:00:00"}, 422, "bad_request"),
        ({"node": "alpha", "deadline": 7200}, 422, "bad_request"),
        ({"node": "alpha", "plan": "yes"}, 422, "bad_request"),
        ({"node": "alpha", "spare": 1}, 422, "bad_request"),
        ({"node": "alpha", "hold_s": "5"}, 422, "bad_request"),
        ({"node": "alpha", "dry_run": True}, 422, "bad_request"),
        ({"node": "\ud800"}, 422, "bad_request"),
        ({"node": "a" * 2000}, 422, "bad_request"),
        ({"node": "alpha", "deadline": "9999-12-31T23:59:59-05:00"}, 422, "bad_request"),
        ({}, 422, "bad_request"),
    ],
)
def test_what_cannot_be_is_refused(
    writer: TestClient, hall: World, wish: dict[str, Any], status: int, code: str
) -> None:
    headers = {"Content-Type": "application/json"}
    response = writer.post("/api/v1/evacuations", content=json.dumps(wish).encode(), headers=headers)
    assert (response.status_code, problem_of(response).code) == (status, code)
    assert hall.count(Evacuation) == 0


# -- alerts -----------------------------------------------------------------------------------------------------------


def test_alerts_are_delivered(deliverer: TestClient, hall: World) -> None:
    add_rule(hall.context, "DiskFails", Answer(AlertAction.EVACUATE))
    response = deliverer.post("/api/v1/hooks/alertmanager", json=DELIVERY)
    (found,) = response.json()["alerts"]
    assert (response.status_code, found["outcome"], found["node"]) == (202, "waiting", "alpha")
    assert [message.task for message in hall.sent] == ["haulier.alerts"]
    assert alerts.list_alerts(hall.context)[0]["fingerprint"] == "f00d"


def test_dry_run_of_a_delivery(deliverer: TestClient, hall: World) -> None:
    add_rule(hall.context, "DiskFails", Answer(AlertAction.EVACUATE))
    response = deliverer.post("/api/v1/hooks/alertmanager?dry_run=true", json=DELIVERY)
    (found,) = response.json()["alerts"]
    assert (response.status_code, found["outcome"], len(found["plan"]["plan"])) == (200, "dry_run", 3)
    assert (hall.count(Alert), hall.sent) == (0, [])


@pytest.mark.parametrize("change", [{"version": "3"}, {"alerts": {}}, {"alerts": [{}] * 13_108}])
def test_what_is_no_delivery_is_refused(deliverer: TestClient, hall: World, change: dict[str, Any]) -> None:
    response = deliverer.post("/api/v1/hooks/alertmanager", json=DELIVERY | change)
    assert (response.status_code, problem_of(response).code) == (422, "bad_request")
    assert hall.count(Alert) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"status": "odd"},
        {"fingerprint": ""},
        {"fingerprint": "a\0"},
        {"startsAt": "yesterday"},
        {"startsAt": "0001-01-01T00:00:00+01:00"},
        {"labels": {"alertname": "DiskFails", "instance": "\ud800"}},
        {"labels": None},
    ],
)
def test_alert_that_cannot_be_read_holds_no_other(deliverer: TestClient, hall: World, change: dict[str, Any]) -> None:
    add_rule(hall.context, "DiskFails", Answer(AlertAction.EVACUATE))
    (good,) = DELIVERY["alerts"]
    body = json.dumps(DELIVERY | {"alerts": [good | change, 7, good]})
    response = deliverer.post("/api/v1/hooks/alertmanager", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, hall.count(Alert)) == (202, 1)
    assert [each["outcome"] for each in response.json()["alerts"]] == ["unreadable", "unreadable", "waiting"]
    assert response.json()["alerts"][0]["message"].startswith(next(iter(change)))


def test_as_many_alerts_as_fit_are_taken(deliverer: TestClient, hall: World) -> None:
    add_rule(hall.context, "DiskFails", Answer(AlertAction.CORDON))
    (one,) = DELIVERY["alerts"]
    many = [one | {"fingerprint": f"{number:x}"} for number in range(3000)]
    response = deliverer.post("/api/v1/hooks/alertmanager", json=DELIVERY | {"alerts": many})
    assert (response.status_code, hall.count(Alert)) == (202, 3000)


# -- errors and health ------------------------------------------------------------------------------------------------


def test_too_long_a_body_is_not_read(client: TestClient) -> None:
    response = client.post("/api/v1/hooks/alertmanager", content=b" " * (MOST_BYTES + 1))
    assert (response.status_code, problem_of(response).code) == (413, "body_too_long")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OperationalError("SELECT secret", {}, Exception("gone")), 503, "database_away"),
        (ProgrammingError("SELECT secret", {}, Exception("no such column")), 500, "internal"),
        (RuntimeError("secret"), 500, "internal"),
    ],
)
def test_what_fails_says_nothing_of_the_inside(
    reader: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(nodes, "list_nodes", fail)
    with capture_logs() as told:
        response = reader.get("/api/v1/nodes")
    assert len(told) == 1, "the log says it"
    assert (response.status_code, problem_of(response).code) == (status, code)
    assert "secret" not in response.text


def test_health_needs_nothing(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.head("/healthz").status_code == 200
    assert client.head("/readyz").status_code == 503


def test_not_ready_says_what_is_missing(client: TestClient) -> None:
    """Nobody is at the broker's socket."""
    response = client.get("/readyz")
    assert (response.status_code, problem_of(response).code) == (503, "broker_away")


def test_it_is_not_looked_each_time_somebody_asks(
    client: TestClient, hall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = list[None]()
    monkeypatch.setattr(type(hall.context.signals), "answers", lambda _: looks.append(None))
    for _ in range(20):
        assert client.get("/readyz").status_code == 503
    assert len(looks) <= 2


def test_what_was_seen_long_ago_is_not_said_while_somebody_looks(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All was well; then the database hangs, and with it whoever looks at it."""
    clock, answers, asked, hangs = [0.0], threading.Event(), threading.Event(), threading.Event()
    for module in (health, haulier.clock):
        monkeypatch.setattr(module, "steady_s", lambda: clock[0])

    def look(_: object) -> list[Problem]:
        asked.set()
        assert not hangs.is_set() or answers.wait(30)
        return []

    monkeypatch.setattr(health, "_database", look)
    monkeypatch.setattr(health, "_control", lambda _: [])
    readiness = health.Readiness(hall.context)
    assert readiness.missing() == ()
    clock[0] = 3.0
    hangs.set()
    asked.clear()
    with ThreadPoolExecutor(1) as pool:
        try:
            first = pool.submit(readiness.missing)
            assert asked.wait(30)
            assert readiness.missing() == (), "that was just so"
            clock[0] = 20.0
            assert [each.code for each in readiness.missing()] == ["not_looked_yet"]
        finally:
            answers.set()
        assert first.result() == ()
        assert readiness.missing() == ()


def test_few_may_have_vms_placed_at_once(writer: TestClient) -> None:
    with one_of_few(), one_of_few():
        response = writer.post("/api/v1/evacuations", json={"node": "alpha", "plan": True})
        assert (response.status_code, problem_of(response).code) == (503, "busy")
        assert response.headers["retry-after"] == "5"
    assert writer.post("/api/v1/evacuations", json={"node": "alpha", "plan": True}).status_code == 200


def test_api_describes_itself(client: TestClient) -> None:
    document = client.get("/api/v1/openapi.json").json()
    calls = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert calls >= {("POST", "/api/v1/evacuations"), ("POST", "/api/v1/hooks/alertmanager"), ("GET", "/readyz")}
    for path, methods in document["paths"].items():
        for call in methods.values():
            assert bool(call.get("security")) is path.startswith("/api/v1/"), path
            for status, answer in call["responses"].items():
                kind = "application/json" if status.startswith("2") else "application/problem+json"
                assert list(answer["content"]) == [kind], (path, status)
    assert "503" in document["paths"]["/readyz"]["get"]["responses"]
