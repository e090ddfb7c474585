"""A VM that was stopped for its move runs again, whatever becomes of that, unless a person leaves it off."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from haulier.clock import now
from haulier.errors import Refused
from haulier.services import evacuation_rows, evacuation_steps, evacuations, vms
from haulier.services.admission import admit
from haulier.services.consent import consent, follow_consents
from haulier.services.limits import LimitChange, set_limits
from haulier.services.lost_nodes import declare_lost
from haulier.services.vms import start_vm, stop_vm
from models import (
    Event,
    LimitScope,
    Migration,
    Node,
    Operation,
    OperationKind,
    Vm,
    VmState,
)

# It does not go while it runs, wherever it is sent to.
from tests.unit.services.consents import (
    hold_web,
    look,
    off,
    operate,
    operations,
    row_of,
    state,
    sync,
    work,
)
from tests.unit.services.hall import beat, hold, play, show, where
from tests.unit.services.world import World, between


def test_it_is_not_left_off_by_a_pause(hall: World) -> None:
    off(hall)
    hold(hall)
    beat(hall)
    evacuations.pause(hall.context, 1)
    assert operations(hall) == ["stop done", "start ready"]
    assert operate(hall) == "start"
    look(hall)
    assert (state(hall), show(hall)["state"], row_of(hall).stopped_at) == ("running", "paused", None)
    (held,) = show(hall)["blocked"]
    assert held["code"] == "move_not_begun"


@pytest.mark.parametrize("why", ["no room", "targets gone"])
def test_it_is_off_for_a_minute_at_most_if_its_move_does_not_begin(hall: World, why: str) -> None:
    off(hall)
    hold(hall)
    look(hall)
    assert operations(hall) == ["stop done"]
    if why == "targets gone":
        hall.change(Node, Node.name != "alpha", state="maintenance")
    hall.change(Operation, finished_at=now() - timedelta(seconds=61))
    look(hall)
    assert operations(hall) == ["stop done", "start ready"]
    with hall.context.database.read() as session:
        newest = session.query(Migration).order_by(Migration.id.desc()).first()
        assert newest is not None
        assert newest.state == "refused", "nobody begins it"
    operate(hall)
    look(hall, times=5)
    assert (operations(hall), state(hall), show(hall)["state"]) == (["stop done", "start done"], "running", "blocked")
    assert show(hall)["blocked"][0]["code"] == "move_not_begun"
    assert row_of(hall).stopped_at is None


def test_it_is_not_started_while_a_sync_is_at_work(hall: World) -> None:
    off(hall)
    hold(hall)
    sync(hall)
    evacuations.cancel(hall.context, 1, undo=False)
    follow_consents(hall.context)
    assert operations(hall) == ["stop done"]
    hall.change(Migration, Migration.replication_id.is_not(None), state="cancelled")
    look(hall, times=1)
    assert operations(hall) == ["stop done", "start ready"]


def test_nothing_is_started_on_a_node_that_is_lost(hall: World) -> None:
    off(hall)
    hold(hall)
    hall.silence("alpha")
    declare_lost(hall.context, "alpha", is_off=True)
    look(hall, slowly=True)
    assert operations(hall) == ["stop done"]
    assert "haulier recover web" in str(show(hall)["waiting_for"])


def test_a_start_that_fails_is_tried_again_at_each_slow_beat(hall: World) -> None:
    off(hall)
    look(hall, broken=True)
    for _ in range(3):
        assert operate(hall, code="worker_lost") == "start"
        look(hall)
        assert operations(hall)[-1] == "start failed"
        follow_consents(hall.context, failed_too=True)
    assert operations(hall) == ["stop done", *["start failed"] * 3, "start ready"]
    with hall.context.database.read() as session:
        told = [row.data["problem"]["code"] for row in session.query(Event).filter_by(kind="evacuation.held")]
    assert told.count("not_started") == 1
    operate(hall)
    look(hall, broken=True)
    assert (row_of(hall).stopped_at, state(hall)) == (None, "running")
    assert "not_started" not in str(show(hall))


@pytest.mark.parametrize("where_it_is", ["source", "target"])
def test_a_start_that_nobody_takes_is_told_and_carried_out_later(hall: World, where_it_is: str) -> None:
    """The worker of its node has died, and nobody has declared the node lost."""
    off(hall)
    if where_it_is == "source":
        evacuations.cancel(hall.context, 1, undo=False)
    else:
        look(hall, times=1)
        follow_consents(hall.context)
    assert operations(hall) == ["stop done", "start ready"]
    look(hall)
    assert "not_started" not in str(show(hall)), "its worker has a minute"
    node = where(hall)["web"]
    hall.silence(node)
    hall.change(Operation, Operation.kind == OperationKind.START, created_at=now() - timedelta(seconds=61))
    look(hall)
    (held,) = show(hall)["blocked"]
    assert (held["code"], held["hint"]) == ("not_started", f"haulier node show {node}")
    assert str(show(hall)["waiting_for"]).startswith("web is not started: ")
    assert operations(hall) == ["stop done", "start ready"], "one is enough"
    assert operate(hall) == "start"
    look(hall)
    assert (state(hall), row_of(hall).stopped_at, show(hall)["blocked"]) == ("running", None, [])


def test_one_that_does_not_start_is_shown_when_the_evacuation_is_over(hall: World) -> None:
    off(hall)
    evacuations.cancel(hall.context, 1, undo=False)
    operate(hall, code="worker_lost")
    look(hall)
    shown = show(hall)
    assert (shown["state"], shown["blocked"][0]["code"]) == ("cancelled", "not_started")
    assert str(shown["waiting_for"]).startswith("web is not started: ")
    follow_consents(hall.context, failed_too=True)
    operate(hall)
    look(hall)
    assert (show(hall)["blocked"], show(hall)["waiting_for"]) == ([], "nothing: it is over")


def test_a_person_may_start_it_on_a_node_that_is_emptied(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    off(hall)
    look(hall, broken=True)
    operate(hall, code="worker_lost")
    look(hall)
    monkeypatch.setattr(vms, "await_operation", lambda *_: None)
    start_vm(hall.context, "web")
    assert operations(hall) == ["stop done", "start failed", "start ready"]


def stop(hall: World) -> None:
    stop_vm(hall.context, "web", now_=False, grace_s=1.0)


def told(hall: World, kind: str) -> int:
    return hall.kinds("evacuation.").count(kind)


@pytest.mark.parametrize("since", ["stop", "filed", "moved", "not_started"])
def test_a_person_may_leave_it_off(hall: World, since: str) -> None:
    """It moves as one that is off, and stays off."""
    off(hall)
    if since == "filed":
        hold(hall)
        look(hall)
    elif since == "moved":
        beat(hall, blocked_too=True)
        play(hall)
    elif since == "not_started":
        look(hall, broken=True)
        operate(hall, code="qemu_failed")
        look(hall)
        assert show(hall)["blocked"][0]["code"] == "not_started"
    before = operations(hall)
    stop(hall)
    assert (row_of(hall).stopped_at, row_of(hall).problem, told(hall, "left_off")) == (None, None, 1)
    if since == "filed":
        set_limits(hall.context, [LimitChange(LimitScope.CLUSTER, (), None)])
        admit(hall.context)
    elif since == "not_started":
        evacuations.resume(hall.context, 1)
    assert work(hall) == []
    assert (operations(hall), state(hall), where(hall)["web"] != "alpha") == (before, "stopped", True)
    assert show(hall)["state"] == "drained"
    with pytest.raises(Refused) as error:
        stop(hall)
    assert error.value.code == "vm_stopped"


def test_one_that_is_just_being_started_is_not_left_off(hall: World) -> None:
    off(hall)
    look(hall, broken=True)
    with pytest.raises(Refused) as error:
        stop(hall)
    assert (error.value.code, row_of(hall).stopped_at is None) == ("operation_open", False)
    assert operations(hall) == ["stop done", "start ready"]


def test_one_that_is_left_off_in_this_moment_is_not_started(hall: World) -> None:
    """By beat, which has found it to be started."""
    off(hall)
    evacuations.pause(hall.context, 1)
    hall.change(Operation, Operation.kind == "start", state="failed")
    with between(hall, "BEGIN IMMEDIATE", lambda: stop(hall)):
        follow_consents(hall.context, failed_too=True)
    assert (operations(hall), state(hall)) == (["stop done", "start failed"], "stopped")


def test_one_that_ran_and_was_stopped_by_a_person_stays_off(hall: World) -> None:
    off(hall)
    look(hall, broken=True)
    operate(hall)
    hall.change(Vm, Vm.name == "web", state=VmState.STOPPED)
    follow_consents(hall.context, failed_too=True)
    assert (operations(hall), row_of(hall).stopped_at) == (["stop done", "start done"], None)


def test_what_was_read_before_the_consent_is_not_written_over_it(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_web(hall)
    real = evacuation_rows.look

    def slow(*args: Any) -> Any:
        found = real(*args)
        monkeypatch.setattr(evacuation_steps, "look", real)
        consent(hall.context, 1, "web")
        return found

    monkeypatch.setattr(evacuation_steps, "look", slow)
    evacuation_steps.go_on(hall.context, 1)
    assert (row_of(hall).problem, operate(hall), show(hall)["state"]) == (None, "stop", "running")
    assert work(hall) == ["start"]
    assert (where(hall)["web"] != "alpha", state(hall)) == (True, "running")


def test_the_room_that_it_runs_in_is_kept_at_its_target(hall: World) -> None:
    off(hall)
    hall.change(Node, Node.name != "alpha", facts={"ram_bytes": 1, "ram_free_bytes": 1})
    look(hall)
    assert operations(hall) == ["stop done", "start ready"], "it is not moved where it could not start"
    assert where(hall)["web"] == "alpha"
