"""A VM is stopped for its move only if its policy and a person say so, and runs again whatever becomes of the move."""

from __future__ import annotations

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.services import evacuations
from haulier.services.consent import consent, follow_consents
from haulier.services.vm_rows import record_state
from haulier.services.vms import set_policy
from models import (
    EvacuationPolicy,
    EvacuationVm,
    Migration,
    Node,
    Operation,
    QueueLimit,
    Vm,
    VmState,
)

# It does not go while it runs, wherever it is sent to.
from tests.unit.services.consents import (
    BROKEN,
    hold_web,
    look,
    off,
    operate,
    operations,
    refused,
    row_of,
    state,
    sync,
    work,
)
from tests.unit.services.hall import hold, play, show, where
from tests.unit.services.world import World


def test_it_is_asked_for_and_nothing_is_stopped_before(hall: World) -> None:
    hold_web(hall)
    (held,) = show(hall)["blocked"]
    assert (held["code"], held["hint"]) == (
        "not_converging", "If it may be stopped for its move: haulier evacuation consent 1 web",
    )  # fmt: skip
    assert work(hall) == []
    assert state(hall) == "running"


def test_it_is_asked_for_where_no_target_takes_it_while_it_runs(hall: World) -> None:
    hold_web(hall, Problem("qemu_not_started", "QEMU did not start", "See its log."), times=3)
    (held,) = show(hall)["blocked"]
    asked = "See its log; or, if it may be stopped for its move: haulier evacuation consent 1 web"
    assert (held["code"], held["hint"]) == ("qemu_not_started", asked)
    assert asked in show(hall)["waiting_for"]
    consent(hall.context, 1, "web")
    assert work(hall) == ["stop", "start"]


def test_it_is_stopped_moved_and_started(hall: World) -> None:
    hold_web(hall)
    shown = consent(hall.context, 1, "web")
    assert shown["waiting_for"] == "web: stopped for the move, and started again then"
    assert work(hall) == ["stop", "start"]
    assert (state(hall), where(hall)["web"] != "alpha", show(hall)["state"]) == ("running", True, "drained")
    with hall.context.database.read() as session:
        assert [row.offline for row in session.query(Migration).order_by(Migration.id)][-1]
    told = hall.kinds("evacuation.")
    assert told[told.index("consent") :] == ["consent", "stopping", "running", "placed", "starting", "drained"]


def test_it_runs_again_where_it_was_if_it_cannot_move_at_all(hall: World) -> None:
    hold_web(hall)
    consent(hall.context, 1, "web")
    assert work(hall, breaks=True) == ["stop", "start"]
    assert (state(hall), where(hall)["web"], show(hall)["state"]) == ("running", "alpha", "blocked")
    assert work(hall) == [], "and is not stopped again"


def test_it_runs_again_if_the_evacuation_is_given_up(hall: World) -> None:
    off(hall)
    evacuations.cancel(hall.context, 1, undo=False)
    assert operations(hall) == ["stop done", "start ready"], "at once, and not by the next beat"
    assert work(hall) == ["start"]
    assert (state(hall), where(hall)["web"]) == ("running", "alpha")


def test_it_is_stopped_by_nobody_if_it_is_given_up_before(hall: World) -> None:
    hold_web(hall)
    hall.change(EvacuationVm, tried_after=99)
    with hall.context.unit() as unit:
        row = unit.session.query(EvacuationVm).one()
        row.consent_at = row.evacuation.created_at
    evacuations.cancel(hall.context, 1, undo=False)
    assert work(hall) == []
    assert state(hall) == "running"


def test_one_that_does_not_start_is_told_and_not_tried_at_each_beat(hall: World) -> None:
    hold_web(hall)
    consent(hall.context, 1, "web")
    assert work(hall, start_fails=True) == ["stop", "start"]
    (held,) = show(hall)["blocked"]
    assert (held["code"], held["hint"]) == ("not_started", "haulier vm start web")
    assert str(show(hall)["waiting_for"]).startswith("web is not started: ")
    with hall.context.database.read() as session:
        number = session.query(Vm.id).filter_by(name="web").one()[0]
    record_state(hall.context, number, VmState.RUNNING)
    assert work(hall) == []
    assert show(hall)["state"] == "drained", "a person has started it"


@pytest.mark.parametrize("policy", [each for each in EvacuationPolicy if each is not EvacuationPolicy.STOP_BY_CONSENT])
def test_other_policies_ask_nobody(hall: World, policy: EvacuationPolicy) -> None:
    hold_web(hall)
    set_policy(hall.context, "web", policy)
    with pytest.raises(Refused) as refused:
        consent(hall.context, 1, "web")
    assert refused.value.code == "no_consent_asked"


def test_one_whose_row_was_spoilt_holds_no_other(hall: World) -> None:
    """Beat asks for all, and goes on to alerts, rolls and windows."""
    for name in ("web", "db"):
        set_policy(hall.context, name, EvacuationPolicy.STOP_BY_CONSENT)
    hall.change(Vm, Vm.name == "mail", node_id=2)
    evacuations.evacuate(hall.context, "alpha")
    play(hall, broken=dict.fromkeys(("beta", "gamma", "delta"), BROKEN))
    hold(hall)
    for name in ("web", "db"):
        consent(hall.context, 1, name)
    hall.change(Vm, Vm.name == "web", definition={"name": "web", "memory_mib": "much"})
    hall.change(QueueLimit, allowed=5)
    with capture_logs() as told:
        follow_consents(hall.context)
    assert [each["event"] for each in told] == ["consent.broken"]
    assert operations(hall) == ["stop ready"]


def test_who_is_not_held_is_not_asked_for(hall: World) -> None:
    set_policy(hall.context, "web", EvacuationPolicy.STOP_BY_CONSENT)
    evacuations.evacuate(hall.context, "alpha")
    for evacuation, vm, code in (
        (1, "web", "no_consent_asked"),
        (1, "omega", "unknown_vm"),
        (7, "web", "unknown_evacuation"),
    ):
        with pytest.raises(Refused) as refused:
            consent(hall.context, evacuation, vm)
        assert refused.value.code == code
    assert hall.count(Operation) == 0
    assert hall.count(Node) == 4


# -- who may consent, and when -----------------------------------------------------------------------------------------


def test_one_that_could_not_move_offline_either_is_refused_with_the_reason(hall: World) -> None:
    hold_web(hall)
    hall.change(Node, Node.name != "alpha", state="maintenance")
    assert refused(hall) not in ("no_consent_asked", "no_place")
    assert hall.count(Operation) == 0
    assert row_of(hall).consent_at is None


def test_nobody_is_asked_while_it_is_paused_or_over(hall: World) -> None:
    hold_web(hall)
    evacuations.pause(hall.context, 1)
    assert refused(hall) == "no_consent_asked"
    evacuations.cancel(hall.context, 1, undo=False)
    assert refused(hall) == "no_consent_asked"


def test_a_guest_that_is_paused_is_not_stopped(hall: World) -> None:
    hold_web(hall)
    hall.change(Vm, Vm.name == "web", state=VmState.PAUSED)
    assert refused(hall) == "no_consent_asked"


def test_a_consent_ends_with_the_policy(hall: World) -> None:
    hold_web(hall)
    sync(hall)
    consent(hall.context, 1, "web")
    set_policy(hall.context, "web", EvacuationPolicy.STAY)
    hall.change(Migration, Migration.replication_id.is_not(None), state="done")
    look(hall)
    assert (operations(hall), row_of(hall).consent_at) == ([], None)
    assert show(hall)["state"] == "blocked"


def test_a_consent_is_void_when_there_is_no_place_any_more(hall: World) -> None:
    hold_web(hall)
    sync(hall)
    consent(hall.context, 1, "web")
    hall.change(Node, Node.name != "alpha", facts={"ram_bytes": 1, "ram_free_bytes": 1})
    look(hall, times=1)
    assert (operations(hall), row_of(hall).consent_at) == ([], None)


# -- the stop ----------------------------------------------------------------------------------------------------------


def test_it_is_not_stopped_while_a_sync_is_at_work_which_makes_way(hall: World) -> None:
    hold_web(hall)
    sync(hall)
    consent(hall.context, 1, "web")
    assert operations(hall) == []
    with hall.context.database.read() as session:
        assert session.query(Migration).filter(Migration.replication_id.is_not(None)).one().cancel_asked
    hall.change(Migration, Migration.replication_id.is_not(None), state="cancelled")
    follow_consents(hall.context)
    assert operations(hall) == ["stop ready"]


def test_it_is_stopped_only_when_the_queue_has_room(hall: World) -> None:
    hold_web(hall)
    hold(hall)
    assert (
        consent(hall.context, 1, "web")["waiting_for"] == "web: to be stopped for the move as soon as that would begin"
    )
    look(hall)
    assert (operations(hall), state(hall)) == ([], "running")


def test_no_more_are_stopped_than_may_leave_at_once(hall: World) -> None:
    for name in ("a", "b", "c"):
        hall.add_vm(name)
    names = ["web", "db", "mail", "a", "b", "c"]
    for name in names:
        set_policy(hall.context, name, EvacuationPolicy.STOP_BY_CONSENT)
    evacuations.evacuate(hall.context, "alpha")
    play(hall, broken=dict.fromkeys(("beta", "gamma", "delta"), BROKEN))
    for name in names:
        consent(hall.context, 1, name)
    allowed = hall.context.settings.max_out
    assert hall.count(Operation) == allowed < len(names)
    with hall.context.database.read() as session:
        ready = [(row.id, row.vm_id or 0) for row in session.query(Operation)]
    for number, vm_id in ready:
        hall.change(Operation, Operation.id == number, state="done", finished_at=now())
        record_state(hall.context, vm_id, VmState.STOPPED)
    follow_consents(hall.context)
    assert hall.count(Operation) == allowed, "those that are off and wait count too"


def test_one_consent_is_one_stop(hall: World) -> None:
    off(hall)
    look(hall, broken=True)
    assert operations(hall) == ["stop done", "start ready"]
    evacuations.resume(hall.context, 1)
    assert operate(hall) == "start"
    # It is tried live again, and fails before anybody looks.
    play(hall, broken=dict.fromkeys(("beta", "gamma", "delta"), BROKEN), deaf=True)
    look(hall, broken=True)
    assert operations(hall) == ["stop done", "start done"]
    assert (row_of(hall).consent_at, row_of(hall).stopped_at, state(hall)) == (None, None, "running")
    consent(hall.context, 1, "web")
    assert operations(hall)[2:] == ["stop ready"], "another one is another"


def test_a_stop_that_fails_is_told_and_not_filed_again(hall: World) -> None:
    hold_web(hall)
    consent(hall.context, 1, "web")
    operate(hall, code="qmp_silent")
    hall.change(Operation, finished_at=now() - timedelta(seconds=61))
    look(hall, slowly=True, broken=True)
    assert operations(hall) == ["stop failed"]
    (held,) = show(hall)["blocked"]
    assert (held["code"], held["hint"]) == ("not_stopped", "haulier evacuation consent 1 web")
    assert (row_of(hall).consent_at, row_of(hall).stopped_at, show(hall)["state"]) == (None, None, "blocked")
    consent(hall.context, 1, "web")
    assert operations(hall) == ["stop failed", "stop ready"]


@pytest.mark.parametrize("is_seen", [VmState.STOPPED, VmState.LOST])
def test_a_guest_that_is_off_although_its_stop_failed_is_not_forgotten(hall: World, is_seen: VmState) -> None:
    """It powered off, and then its TPM's state could not be read; or its monitor fell silent when it had been asked."""
    hold_web(hall)
    consent(hall.context, 1, "web")
    operate(hall, code="qmp_silent")
    look(hall)
    hall.change(Vm, Vm.name == "web", state=is_seen)
    look(hall)
    if is_seen is VmState.LOST:
        (held,) = show(hall)["blocked"]
        assert held["code"] == "not_started", "a person is to look"
        return
    assert work(hall) == ["start"]
    assert (where(hall)["web"] != "alpha", state(hall), show(hall)["state"]) == (True, "running", "drained")


def test_a_guest_whose_stop_was_lost_with_its_worker_is_seen_first(hall: World) -> None:
    hold_web(hall)
    consent(hall.context, 1, "web")
    operate(hall, code="worker_lost")
    look(hall)
    assert row_of(hall).stopped_at is not None, "it may be off"
    hall.change(Vm, Vm.name == "web", state=VmState.LOST)
    look(hall)
    assert (operations(hall), where(hall)["web"]) == (["stop failed"], "alpha")
    (held,) = show(hall)["blocked"]
    assert (held["code"], held["hint"]) == ("not_started", "haulier vm start web")


def test_a_guest_that_survived_the_loss_of_a_worker_is_told_of_later(hall: World) -> None:
    hold_web(hall)
    consent(hall.context, 1, "web")
    operate(hall, code="worker_lost")
    hall.change(Operation, finished_at=now() - timedelta(seconds=61))
    look(hall)
    assert (row_of(hall).stopped_at, show(hall)["blocked"][0]["code"]) == (None, "not_stopped")


@pytest.mark.parametrize("ends", ["cancel", "pause", "policy", "silence"])
def test_a_stop_that_nobody_has_taken_is_taken_back(hall: World, ends: str) -> None:
    hold_web(hall)
    consent(hall.context, 1, "web")
    if ends == "cancel":
        evacuations.cancel(hall.context, 1, undo=False)
    elif ends == "pause":
        evacuations.pause(hall.context, 1)
    elif ends == "policy":
        set_policy(hall.context, "web", EvacuationPolicy.LIVE)
        follow_consents(hall.context)
    else:
        # Nobody takes it for a minute.
        old = now() - timedelta(seconds=61)
        hall.change(Operation, created_at=old)
        hall.change(EvacuationVm, EvacuationVm.stopped_at.is_not(None), stopped_at=old)
        follow_consents(hall.context)
    assert operations(hall) == ["stop failed"]
    look(hall, broken=True)
    assert (operations(hall), state(hall), row_of(hall).stopped_at) == (["stop failed"], "running", None)
