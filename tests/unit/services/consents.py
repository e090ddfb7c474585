"""`web` cannot leave alpha while it runs, and somebody may consent to stop it."""

from __future__ import annotations

import pytest

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.services import evacuations
from haulier.services.admission import admit
from haulier.services.consent import consent, follow_consents
from haulier.services.operations import end_operation
from haulier.services.replications import sweep_replications
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
    Replication,
    Vm,
    VmState,
)
from tests.unit.services.hall import beat, play, show
from tests.unit.services.world import World

# It does not go while it runs, wherever it is sent to.

BROKEN = Problem("not_converging", "it dirties its RAM too fast", "")


def hold_web(hall: World, why: Problem = BROKEN, *, times: int = 1) -> None:
    """Of three VMs two leave, and `web` cannot while it runs."""
    set_policy(hall.context, "web", EvacuationPolicy.STOP_BY_CONSENT)
    for name in ("db", "mail"):
        hall.change(Vm, Vm.name == name, node_id=2)
    evacuations.evacuate(hall.context, "alpha")
    for _ in range(times):
        play(hall, broken=dict.fromkeys(("beta", "gamma", "delta"), why))
        beat(hall)
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


def operate(hall: World, *, code: str | None = None) -> str:
    """The node carries out the operation that is ready; with a code it fails. Says which it was."""
    with hall.context.unit() as unit:
        row = unit.session.query(Operation).filter_by(state="ready").one()
        row.state = OperationState.RUNNING
        kind, vm_id = row.kind, row.vm_id
        unit.session.flush()
        problems = (Problem(code, "it would not", ""),) if code else ()
        end_operation(unit, row.id, OperationState.FAILED if code else OperationState.DONE, problems)
    assert vm_id is not None
    if not code:
        record_state(hall.context, vm_id, VmState.STOPPED if kind is OperationKind.STOP else VmState.RUNNING)
    return kind.value


def off(hall: World) -> None:
    """`web` was stopped for its move, and nothing of that has begun."""
    hold_web(hall)
    consent(hall.context, 1, "web")
    assert operate(hall) == "stop"


def look(hall: World, *, slowly: bool = False, times: int = 3, broken: bool = False) -> None:
    """Beat goes by so often."""
    for _ in range(times):
        follow_consents(hall.context, failed_too=slowly)
        beat(hall, blocked_too=True)
        play(hall, broken=dict.fromkeys(("beta", "gamma", "delta"), BROKEN) if broken else None)


def operations(hall: World) -> list[str]:
    with hall.context.database.read() as session:
        return [f"{row.kind} {row.state}" for row in session.query(Operation).order_by(Operation.id)]


def row_of(hall: World) -> EvacuationVm:
    with hall.context.database.read() as session:
        return session.query(EvacuationVm).join(Vm, Vm.id == EvacuationVm.vm_id).filter(Vm.name == "web").one()


def sync(hall: World) -> None:
    """A sync of `web` is at work."""
    with hall.context.database.write() as session:
        vm, target = session.query(Vm).filter_by(name="web").one(), session.query(Node).filter_by(name="beta").one()
        made = {"every_s": 900.0, "generation": 0, "created_at": now()}
        session.add(Replication(vm_id=vm.id, target_id=target.id, **made))
    sweep_replications(hall.context)
    admit(hall.context)
    with hall.context.database.read() as session:
        assert session.query(Migration).filter(Migration.replication_id.is_not(None)).one().state == "running"


def refused(hall: World, number: int = 1, vm: str = "web") -> str:
    with pytest.raises(Refused) as error:
        consent(hall.context, number, vm)
    return error.value.code


def state(hall: World) -> str:
    with hall.context.database.read() as session:
        return session.query(Vm.state).filter_by(name="web").one()[0].value
