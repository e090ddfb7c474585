"""Where there is always room for one more to begin, admission does not end for long, and nothing waits for that."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import select

from haulier.clock import Pace
from haulier.services import admission
from haulier.services.admission import admit
from haulier.services.context import CONTROL_QUEUE, Message
from haulier.services.lost_nodes import declare_lost
from haulier.services.operations import file_operation
from models import LimitScope, Node, Operation, OperationKind, OperationState, Vm
from tasks import reconcile
from tests.unit.services.test_admission import add_node, admits, holds, limit, queue_up, states
from tests.unit.services.world import World


def steps_of_checks(world: World) -> list[Message]:
    return [message for message in world.sent if message.task == "haulier.check" and message.queue == CONTROL_QUEUE]


def test_worker_looks_through_all_that_wait_now_and_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with each end; nobody is begun who must not be, and none is refused for a wrong reason meanwhile."""
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    limit(world, LimitScope.CLUSTER, allowed=None)
    monkeypatch.setattr(reconcile, "context", lambda: world.context)
    monkeypatch.setattr(reconcile, "_settling", never := Pace(3600))
    assert never.is_due(), "and not again"
    world.silence("alpha")
    declare_lost(world.context, "alpha", is_off=True)
    reconcile.admit(1)
    assert states(world) == ["queued"]
    monkeypatch.setattr(reconcile, "_settling", Pace(1))
    reconcile.admit(1)
    assert states(world) == ["refused"]
    assert world.migration().problems[0]["code"] == "node_lost"


def test_who_was_held_comes_before_younger_ones_as_soon_as_that_is_over(world: World) -> None:
    """Although there is always room for one more, so that this does not end for long."""
    for node, scope in (("alpha", LimitScope.OUT), ("beta", LimitScope.IN)):
        limit(world, scope, node, allowed=100)
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, *(f"vm{number}" for number in range(13)))
    with world.context.unit() as unit:
        vm = unit.session.scalars(select(Vm).where(Vm.name == "vm0")).one()
        operation = file_operation(unit, vm, OperationKind.STOP, grace_s=1.0).id
    limit(world, LimitScope.CLUSTER, allowed=100)

    def dispatch(message: Message) -> None:
        """Four are begun, and what works on the first one's VM is over."""
        world.sent.append(message)
        if message.task == "haulier.check" and len(steps_of_checks(world)) == 4:
            world.change(Operation, Operation.id == operation, state=OperationState.DONE)

    world.sent.clear()
    admit(replace(world.context, dispatch=dispatch), settling=Pace(0))
    begun = [held.migration_id for message in steps_of_checks(world) if (held := world.claim(message))]
    assert begun[:4] == [2, 3, 4, 5]
    assert begun[4] == 1
    assert sorted(begun) == list(range(1, 14))


def test_who_waits_for_an_answer_leaves_the_rest_to_the_control_worker(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is always room for one more, a command would never come back."""
    for node, scope in (("alpha", LimitScope.OUT), ("beta", LimitScope.IN)):
        limit(world, scope, node, allowed=100)
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, *(f"vm{number}" for number in range(9)))
    limit(world, LimitScope.CLUSTER, allowed=100)
    world.sent.clear()
    seconds = iter(range(100))
    monkeypatch.setattr(admission, "steady_s", lambda: next(seconds))
    admit(world.context, at_most_s=1.5)
    assert states(world) == ["running"] * 4 + ["queued"] * 5
    assert len(admits(world)) == 1
    admit(world.context)
    assert states(world) == ["running"] * 9


def test_vm_that_is_recovered_elsewhere_while_others_begin(world: World) -> None:
    """It leaves from there, and by the limits of that node, although nobody has looked after it since."""
    add_node(world, "gamma")
    limit(world, LimitScope.OUT, "gamma", allowed=0)
    limit(world, LimitScope.OUT, "alpha", allowed=100)
    limit(world, LimitScope.IN, "beta", allowed=100)
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, *(f"vm{number}" for number in range(6)))
    limit(world, LimitScope.CLUSTER, allowed=100)

    def dispatch(_: Message) -> None:
        """The first of them are begun."""
        with world.context.database.write() as session:
            vm = session.scalars(select(Vm).where(Vm.name == "vm5")).one()
            vm.node = session.scalars(select(Node).where(Node.name == "gamma")).one()
            for volume in vm.volumes:
                volume.storage = vm.node.storages[0]

    never = Pace(3600)
    assert never.is_due(), "and not again"
    admit(replace(world.context, dispatch=dispatch), settling=never)
    assert states(world) == ["running"] * 5 + ["queued"]
    assert holds(world) == [(6, "out", "none may leave gamma: the limit is 0")]
