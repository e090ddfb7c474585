"""Operations: filed, taken once, awaited by the row; and who may file one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from haulier.errors import HaulierError, NeedsOperator, Problem, Refused, StepFailed
from haulier.services.context import Context, Message
from haulier.services.operations import (
    await_operation,
    end_operation,
    file_operation,
    hurry_stop,
    is_hurried,
    require_free,
    require_worker,
    take_operation,
)
from models import Node, NodeState, Operation, OperationKind, OperationState, Vm
from tests.unit.services.world import BROKEN, World


def file(world: World, kind: OperationKind = OperationKind.STOP) -> int:
    with world.context.unit() as unit:
        return file_operation(unit, unit.session.get_one(Vm, 1), kind, grace_s=1.5).id


def end(world: World, operation_id: int, state: OperationState, *problems: Problem) -> None:
    with world.context.unit() as unit:
        end_operation(unit, operation_id, state, problems)


def row(world: World, operation_id: int = 1) -> Operation:
    with world.context.database.read() as session:
        return session.get_one(Operation, operation_id)


def code_of(act: Callable[[], object]) -> str:
    try:
        act()
    except HaulierError as error:
        return error.code
    return "nothing"


def test_filed_as_a_row_and_a_message_to_its_node(world: World) -> None:
    assert file(world) == 1
    assert world.sent == [Message("haulier.vm.stop", "node.alpha", 1)]
    assert (row(world).state, row(world).arguments) == (OperationState.READY, {"grace_s": 1.5})


def test_taken_once(world: World) -> None:
    file(world)
    order = take_operation(world.context, 1)
    assert order is not None
    assert (order.vm, order.arguments) == ("web", {"grace_s": 1.5})
    assert take_operation(world.context, 1) is None
    assert take_operation(world.context, 4711) is None
    assert row(world).state is OperationState.RUNNING
    assert row(world).lease_until


def test_end_is_written_once(world: World) -> None:
    file(world)
    take_operation(world.context, 1)
    end(world, 1, OperationState.DONE)
    end(world, 1, OperationState.FAILED, BROKEN)
    assert (row(world).state, row(world).problems) == (OperationState.DONE, [])


def hurry(world: World) -> int | None:
    with world.context.unit() as unit:
        return hurry_stop(unit, unit.session.get_one(Vm, 1))


def test_stop_is_hurried(world: World) -> None:
    number = file(world)
    take_operation(world.context, number)
    assert not is_hurried(world.context, number)
    assert hurry(world) == number
    assert is_hurried(world.context, number)


@pytest.mark.parametrize("kind", [OperationKind.START, OperationKind.STOP])
def test_only_a_stop_that_is_under_way_can_be_hurried(world: World, kind: OperationKind) -> None:
    number = file(world, kind)
    take_operation(world.context, number)
    if kind is OperationKind.STOP:
        end(world, number, OperationState.DONE)
    assert hurry(world) is None


def test_what_was_not_taken_has_no_end(world: World) -> None:
    file(world)
    end(world, 1, OperationState.DONE)
    assert row(world).state is OperationState.READY


@pytest.mark.parametrize(("state", "error"), [(OperationState.REFUSED, Refused), (OperationState.FAILED, StepFailed)])
def test_waiting_ends_as_the_operation_did(world: World, state: OperationState, error: type[HaulierError]) -> None:
    file(world)
    take_operation(world.context, 1)
    end(world, 1, state, BROKEN)
    with pytest.raises(error) as caught:
        await_operation(world.context, 1)
    assert caught.value.problem == BROKEN


def test_every_reason_of_a_refusal_is_told(world: World) -> None:
    file(world)
    take_operation(world.context, 1)
    second = Problem("second", "m", "h")
    end(world, 1, OperationState.REFUSED, BROKEN, second)
    with pytest.raises(Refused) as caught:
        await_operation(world.context, 1)
    assert caught.value.problems == (BROKEN, second)


def test_waiting_for_what_is_done_returns(world: World) -> None:
    file(world)
    take_operation(world.context, 1)
    end(world, 1, OperationState.DONE)
    await_operation(world.context, 1)


def test_waiting_has_an_end(world: World) -> None:
    file(world)
    with pytest.raises(NeedsOperator, match="operation_slow"):
        await_operation(world.context, 1, seconds=0.0)
    assert row(world).state is OperationState.READY


def test_operation_of_a_silent_node_is_withdrawn(world: World) -> None:
    file(world)
    world.silence("alpha")
    assert code_of(lambda: await_operation(world.context, 1)) == "node_silent"
    assert take_operation(world.context, 1) is None
    assert code_of(lambda: file(world)) == "nothing"


def test_second_one_who_waits_for_a_withdrawn_operation_hears_why(world: World) -> None:
    file(world)
    world.silence("alpha")
    for _ in range(2):
        assert code_of(lambda: await_operation(world.context, 1)) == "node_silent"


def test_worker_must_live(world: World) -> None:
    with world.context.database.read() as session:
        node = session.get_one(Node, 1)
        require_worker(world.context, node)
    world.silence("alpha")
    with world.context.database.read() as session:
        node = session.get_one(Node, 1)
    assert code_of(lambda: require_worker(world.context, node)) == "node_silent"
    node.state = NodeState.LOST
    assert code_of(lambda: require_worker(world.context, node)) == "node_lost"


def busy_code(world: World) -> str:
    with world.context.unit() as unit:
        vm = unit.session.get_one(Vm, 1)
        return code_of(lambda: require_free(unit, vm))


def test_free_vm(world: World) -> None:
    assert busy_code(world) == "nothing"


@pytest.mark.parametrize("taken", [False, True])
def test_vm_with_an_open_operation_is_busy(world: World, *, taken: bool) -> None:
    file(world)
    if taken:
        take_operation(world.context, 1)
    assert busy_code(world) == "operation_open"


def test_vm_in_a_migration_is_busy(world: World) -> None:
    world.file()
    assert busy_code(world) == "migration_open"
    world.fail(world.take())
    assert busy_code(world) == "nothing"


def test_vm_with_an_open_operation_is_not_migrated(world: World) -> None:
    """A stop that is under way and a migration would each pull at the same QEMU."""
    file(world)
    assert code_of(world.file) == "operation_open"


def test_operation_whose_message_was_lost_is_sent_again(world: World) -> None:
    """Whoever filed it may be gone; the VM must not stay busy for ever."""
    file(world)
    lost = world.sent.pop()
    world.change(Operation, created_at=row(world).created_at.replace(year=2020))
    world.sweep()
    assert lost in world.sent


def test_operation_whose_worker_died_ends(world: World) -> None:
    file(world)
    order = take_operation(world.context, 1)
    assert order is not None
    world.change(Operation, lease_s=0)
    world.sweep()
    assert row(world).state is OperationState.FAILED
    assert busy_code(world) == "nothing"


def test_waiting_needs_no_broker(world: World) -> None:
    """The end may come at any moment: here in the moment of the message."""
    around: Context

    def work(message: Message) -> None:
        take_operation(around, message.row)
        end(World(around), message.row, OperationState.DONE)

    around = Context(world.context.settings, world.context.database, world.context.signals, work)
    await_operation(around, file(World(around)))
