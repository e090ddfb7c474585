"""Who runs the guest, decided under threads: on SQLite and on PostgreSQL, with the unlucky moments played on purpose.

SQLite lets one writer in at a time. PostgreSQL lets both sides read before either writes, so that only a
compare-and-set or a lock keeps them apart; `between` holds one transaction at the moment that matters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from haulier.errors import Refused
from haulier.services import chain, claims
from haulier.services.allocations import take_port
from haulier.services.limits import LimitChange, set_limits
from haulier.services.migrations import cancel_migration
from models import Allocation, Database, LimitScope, Migration, Phase
from tests.unit.services.world import LEASE_S, World, between, neighbour, open_world

ROUNDS = 12


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    with open_world(Database(database_url), tmp_path) as world:
        world.populate()
        yield world


@pytest.fixture
def on_postgres(postgres_url: str, tmp_path: Path) -> Iterator[World]:
    """For moments that SQLite cannot have: it never lets a second writer in between."""
    with open_world(Database(postgres_url), tmp_path) as world:
        world.populate()
        world.add_vm()
        world.file()
        yield world


def together(*acts: Callable[[], Any]) -> list[Any]:
    """All of them at the same moment; what each returned."""
    start = threading.Barrier(len(acts))

    def act(each: Callable[[], Any]) -> Any:
        start.wait()
        return each()

    with ThreadPoolExecutor(len(acts)) as pool:
        return [future.result() for future in [pool.submit(act, each) for each in acts]]


def source_fails(world: World, move: claims.Claim, _hand: claims.Claim) -> None:
    world.fail(move)


def user_cancels(world: World, move: claims.Claim, _hand: claims.Claim) -> None:
    world.change(Migration, Migration.id == move.migration_id, cancel_asked=True)
    chain.renew(world.context, move, lease_s=LEASE_S)


def source_dies(world: World, move: claims.Claim, _hand: claims.Claim) -> None:
    world.let_lease_end(move)
    world.sweep()


def target_seems_dead(world: World, _move: claims.Claim, hand: claims.Claim) -> None:
    world.let_lease_end(hand)
    world.sweep()


RIVALS = [source_fails, user_cancels, source_dies, target_seems_dead]


def assert_one_winner(world: World, name: str, migration_id: int, *, won: bool) -> None:
    vm = world.vm(name)
    assert world.state(migration_id) == ("handed_over" if won else "rolling_back")
    assert (vm.node.name, vm.epoch) == (("beta", 1) if won else ("alpha", 0))


@pytest.mark.parametrize("rival", RIVALS)
def test_hand_over_and_rolling_back_exclude_each_other(world: World, rival: Callable[..., None]) -> None:
    """Whoever is first; and whoever it is, the migration comes to its end afterwards."""
    for number in range(ROUNDS):
        name = f"vm{number}"
        world.add_vm(name)
        migration_id = world.file(name)
        move, hand = world.switch_over()
        view = world.view(hand.attempt_id)
        with neighbour(world) as other:
            won, _ = together(lambda: world.commit(hand, view), lambda: rival(other, move, hand))  # noqa: B023
        assert_one_winner(world, name, migration_id, won=won)
        world.settle()
        assert world.state(migration_id) == "done" if won else world.state(migration_id) in ("undone", "cancelled")


@pytest.mark.parametrize("rival", RIVALS)
def test_commit_between_the_rivals_look_and_its_decision(on_postgres: World, rival: Callable[..., None]) -> None:
    """The rival has read `running` and is about to write when the hand-over is committed."""
    world = on_postgres
    move, hand = world.switch_over()
    view = world.view()
    with (
        neighbour(world) as other,
        between(other, "UPDATE migration", lambda: world.commit(hand, view)) as committed,
    ):
        rival(other, move, hand)
    assert_one_winner(world, "web", 1, won=committed.result())
    world.settle()
    assert world.state() == "done" if committed.result() else world.state() in ("undone", "cancelled")


@pytest.mark.parametrize("rival", RIVALS)
def test_decision_between_the_targets_look_and_its_commit(on_postgres: World, rival: Callable[..., None]) -> None:
    """The target has seen its claim and is about to write `handed_over` when the source decides for itself."""
    world = on_postgres
    move, hand = world.switch_over()
    view = world.view()
    with (
        neighbour(world) as other,
        between(world, "UPDATE migration", lambda: rival(other, move, hand), parameter="handed_over") as decided,
    ):
        won = world.commit(hand, view)
    decided.result()
    assert_one_winner(world, "web", 1, won=won)
    world.settle()
    assert world.state() == "done" if won else world.state() in ("undone", "cancelled")


def test_both_halves_end_in_the_same_moment(world: World) -> None:
    """Each must see the other as done, or nobody would send what follows on both."""
    for number in range(ROUNDS):
        name = f"vm{number}"
        world.add_vm(name)
        world.file(name)
        move, hand = world.switch_over()
        assert world.commit(hand)
        with neighbour(world) as other:
            together(
                lambda: chain.complete(world.context, move, notes={}),  # noqa: B023
                lambda: chain.complete(other.context, hand, notes={}),  # noqa: B023
            )
        assert world.picture(hand.attempt_id) == "ddddddddddr"
        assert [message.task for message in world.sent] == ["haulier.retire_source"]
        world.settle()


def test_one_half_ends_inside_the_end_of_the_other(on_postgres: World) -> None:
    world = on_postgres
    move, hand = world.switch_over()
    assert world.commit(hand)
    with (
        neighbour(world) as other,
        between(world, "UPDATE step", lambda: chain.complete(other.context, move, notes={})) as ended,
    ):
        assert chain.complete(world.context, hand, notes={})
    assert ended.result()
    assert world.picture() == "ddddddddddr"


def test_step_taken_while_it_is_being_called_back(on_postgres: World) -> None:
    """move_memory was sent but not taken when hand_over fails: it is either taken and waited for, or not taken."""
    world = on_postgres
    hand = world.go(Phase.HAND_OVER)
    assert chain.stand_by(world.context, hand)
    late = world.sent.pop()
    with (
        neighbour(world) as other,
        between(other, "UPDATE step", lambda: world.claim(late), parameter="waiting") as taken,
    ):
        other.fail(hand)
    assert world.picture()[8] == ("R" if taken.result() else ".")


def test_step_is_taken_once(world: World) -> None:
    places = ((LimitScope.OUT, "alpha"), (LimitScope.IN, "beta"))
    set_limits(world.context, [LimitChange(scope, (node,), ROUNDS) for scope, node in places])
    for number in range(ROUNDS):
        world.add_vm(f"vm{number}")
        world.file(f"vm{number}")
        message = world.sent.pop()
        with neighbour(world) as other:
            claims = together(*[lambda: world.claim(message), lambda: other.claim(message)] * 2)  # noqa: B023
        assert sum(held is not None for held in claims) == 1


def test_lease_that_is_renewed_while_the_sweep_looks(on_postgres: World) -> None:
    """The sweep has found the lease ended; the worker renews it before the sweep has locked the attempt."""
    world = on_postgres
    held = world.take()
    world.let_lease_end(held)
    with (
        neighbour(world) as other,
        between(
            world,
            "SELECT attempt.id \nFROM attempt \nWHERE attempt.id = (SELECT",
            lambda: chain.renew(other.context, held, lease_s=LEASE_S),
        ) as renewed,
    ):
        world.sweep()
    assert renewed.result()
    assert (world.state(), world.picture()) == ("running", "R..........")


def test_one_vm_is_filed_once(world: World) -> None:
    """The loser is refused in words, not with an error of the database."""
    world.add_vm()

    def file(each: World) -> int | str:
        try:
            return each.file()
        except Refused as error:
            return error.code

    with neighbour(world) as other:
        answers = together(*[lambda: file(world), lambda: file(other)] * 2)
    assert sorted(map(str, answers)) == ["1", *["migration_open"] * 3]
    assert world.count(Migration) == 1


def test_cancel_and_commit(world: World) -> None:
    """Whatever the order: a cancel that was accepted and the hand-over may both be told, but only one happens."""
    for number in range(ROUNDS):
        name = f"vm{number}"
        world.add_vm(name)
        migration_id = world.file(name)
        move, hand = world.switch_over()
        view = world.view(hand.attempt_id)

        def cancel(each: World, migration_id: int = migration_id) -> None:
            try:
                cancel_migration(each.context, migration_id)
            except Refused as error:
                assert error.code == "cancel_too_late"

        with neighbour(world) as other:
            won, _ = together(lambda: world.commit(hand, view), lambda: cancel(other))  # noqa: B023
        if won:
            chain.complete(world.context, move, notes={})
        world.settle()
        assert world.state(migration_id) == ("done" if won else "cancelled")


def test_no_port_is_promised_twice(world: World) -> None:
    """Four workers take all ports of a small range; nobody gets one that another has, and nobody goes without."""
    world.add_vm()
    world.file()
    view = world.view()
    node = type(view.target)(view.target.id, "beta", "10.0.0.1", (61000, 61039), "bridge", {})

    def take_ten(each: World) -> list[int]:
        return [take_port(each.context, view.attempt_id, node, "t", avoid=frozenset()) for _ in range(10)]

    with neighbour(world) as other:
        taken = together(*[lambda: take_ten(world), lambda: take_ten(other)] * 2)
    assert sorted(port for ports in taken for port in ports) == list(range(61000, 61040))
    assert world.count(Allocation) == 40
    with pytest.raises(Refused, match="no_port"):
        take_port(world.context, view.attempt_id, node, "t", avoid=frozenset())
