"""A VM is stopped for its move only if its policy and a person say so, and runs again whatever becomes of the move."""

from __future__ import annotations

import pytest

from haulier.errors import Problem, Refused
from haulier.services import evacuations
from haulier.services.consent import consent, follow_consents
from haulier.services.operations import end_operation
from haulier.services.vm_rows import record_state
from haulier.services.vms import set_policy
from models import (
    EvacuationPolicy,
    EvacuationVm,
    Migration,
    Node,
    Operation,
    OperationKind,
    OperationState,
    Vm,
    VmState,
)
from tests.unit.services.hall import beat, play, show, where
from tests.unit.services.world import World

# It does not go while it runs, wherever it is sent to.
BROKEN = Problem("not_converging", "it dirties its RAM too fast", "")


def hold_web(hall: World) -> None:
    """Of three VMs two leave, and `web` cannot while it runs."""
    set_policy(hall.context, "web", EvacuationPolicy.STOP_BY_CONSENT)
    for name in ("db", "mail"):
        hall.change(Vm, Vm.name == name, node_id=2)
    evacuations.evacuate(hall.context, "alpha")
    play(hall, broken=dict.fromkeys(("beta", "gamma", "delta"), BROKEN))
    assert show(hall)["state"] == "blocked"


def work(hall: World, *, start_fails: bool = False, breaks: bool = False) -> list[str]:
    """Nodes carry out operations, and beat goes by until nothing is left to be done; what was carried out."""
    done = list[str]()
    for _ in range(8):
        follow_consents(hall.context)
        beat(hall)
        play(hall, broken=dict.fromkeys(("beta", "gamma", "delta"), BROKEN) if breaks else None)
        with hall.context.database.read() as session:
            ready = [(row.id, row.kind, row.vm_id) for row in session.query(Operation).filter_by(state="ready")]
        for number, kind, vm_id in ready:
            done.append(kind.value)
            fails = start_fails and kind is OperationKind.START
            assert vm_id is not None
            with hall.context.unit() as unit:
                row = unit.session.get_one(Operation, number)
                row.state = OperationState.RUNNING
                unit.session.flush()
                state = OperationState.FAILED if fails else OperationState.DONE
                end_operation(unit, number, state, (Problem("qemu_failed", "no", ""),) if fails else ())
            if not fails:
                record_state(hall.context, vm_id, VmState.STOPPED if kind is OperationKind.STOP else VmState.RUNNING)
    return done


def state(hall: World) -> str:
    with hall.context.database.read() as session:
        return session.query(Vm.state).filter_by(name="web").one()[0].value


def test_it_is_asked_for_and_nothing_is_stopped_before(hall: World) -> None:
    hold_web(hall)
    (held,) = show(hall)["blocked"]
    assert (held["code"], held["hint"]) == (
        "not_converging", "If it may be stopped for its move: haulier evacuation consent 1 web",
    )  # fmt: skip
    assert work(hall) == []
    assert state(hall) == "running"


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
    hold_web(hall)
    consent(hall.context, 1, "web")
    evacuations.cancel(hall.context, 1, undo=False)
    assert work(hall) == ["stop", "start"]
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


def test_one_that_does_not_start_is_told_and_not_tried_for_ever(hall: World) -> None:
    hold_web(hall)
    consent(hall.context, 1, "web")
    assert work(hall, start_fails=True) == ["stop", "start"]
    (held,) = show(hall)["blocked"]
    assert (held["code"], held["hint"]) == ("not_started", "haulier vm start web")
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
