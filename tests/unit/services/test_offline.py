"""The chain of a VM that does not run: fewer steps, and the same decision who has it."""

from __future__ import annotations

import pytest
from sqlalchemy import delete

from haulier.services import chain, claims
from haulier.services.ownership import HandOver, NewHome, record_settled
from models import OFFLINE_CHAIN, Phase, TpmLedger, Vm, VmState
from tests.unit.services.world import World


@pytest.fixture(autouse=True)
def at_rest(world: World) -> None:
    world.change(Vm, state=VmState.STOPPED, pid=None, qmp=None)


def arrive(world: World) -> claims.Claim:
    """Everything before the hand-over is done, and it is taken."""
    world.file(offline=True)
    while (held := world.take()).phase is not Phase.HAND_OVER:
        if held.phase is Phase.RESERVE:
            world.reserve_tpm(world.view())
        world.complete(held)
    return held


def take_over(world: World, held: claims.Claim, digest: str = "d1" * 32) -> bool:
    return HandOver(world.context, held, world.view(), NewHome()).commit(digest)


def test_steps_of_the_table_one_after_the_other(world: World) -> None:
    world.file(offline=True)
    order = []
    while world.sent:
        (message,) = world.sent
        held = world.take()
        assert world.claim(message) is None
        order.append((held.phase, held.side))
        if held.phase is Phase.HAND_OVER:
            assert take_over(world, held)
        chain.complete(world.context, held, notes={})
    assert order == [(rule.phase, rule.side) for rule in OFFLINE_CHAIN]
    assert (world.state(), world.picture()) == ("done", "d" * len(OFFLINE_CHAIN))


@pytest.mark.parametrize("state", [VmState.STOPPED, VmState.LOST])
def test_vm_is_on_the_target_as_it_was(world: World, state: VmState) -> None:
    world.change(Vm, state=state)
    held = arrive(world)
    assert take_over(world, held)
    record_settled(world.context, world.view(), state=None)
    vm = world.vm()
    assert (vm.node.name, vm.epoch, vm.state, vm.pid, vm.qmp) == ("beta", 1, state, None, None)
    assert world.ledger() == [("alpha", "quarantined", 0), ("beta", "active", 1)]
    assert world.kinds("vm.") == []
    assert world.view().settled


def test_vm_without_a_tpm_yet_has_no_row_for_one(world: World) -> None:
    """SQL lets no row be `active` that does not know its TPM."""
    with world.context.database.write() as session:
        session.execute(delete(TpmLedger))
    assert take_over(world, arrive(world))
    assert (world.vm().node.name, world.ledger()) == ("beta", [])


def test_worker_that_was_lost_before_the_hand_over_has_lost_it(world: World) -> None:
    held = arrive(world)
    world.let_lease_end(held)
    world.sweep()
    assert not take_over(world, held)
    assert world.undo_all() == [Phase.HAND_OVER, Phase.COPY_COLD, Phase.SYNC_TPM, Phase.RESERVE]
    vm = world.vm()
    assert (world.state(), vm.node.name, vm.epoch, vm.state) == ("undone", "alpha", 0, VmState.STOPPED)


def test_worker_that_was_lost_after_the_hand_over_is_replaced(world: World) -> None:
    held = arrive(world)
    assert take_over(world, held)
    world.settle()
    assert (world.state(), world.vm().node.name) == ("done", "beta")
