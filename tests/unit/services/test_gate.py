"""Many are prepared, few move their guests' RAM: who waits before that, and what lets them through."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from haulier.clock import now
from haulier.services import chain, migrations
from haulier.services.admission import admit
from haulier.services.context import Message
from haulier.services.limits import LimitChange, set_limits
from haulier.services.lost_nodes import declare_lost
from haulier.services.queue import list_queue
from models import Attempt, Gate, LimitScope, Migration, Phase
from tests.unit.services.world import World

# The order of the steps: move_memory stands before hand_over.
PREPARED = "dddddddd..."


def allow(world: World, number: int | None) -> None:
    set_limits(world.context, [LimitChange(LimitScope.CLUSTER, (), number, Gate.MOVE)])


def prepare(world: World, name: str) -> int:
    """A migration of this VM is brought up to the end of its mirrors; its number."""
    if name != "web":
        world.add_vm(name)
    world.sent.clear()
    migration = world.file(name)
    world.complete(world.go(Phase.MIRROR_DISKS))
    return migration


def steps_sent(world: World) -> list[Message]:
    return [message for message in world.sent if message.task != "haulier.admit"]


def holds(world: World) -> list[tuple[int, str, str]]:
    return [(each["id"], each["gate"], each["waiting_for"]["text"]) for each in list_queue(world.context)]


def finish_move(world: World) -> None:
    """The RAM of the one that is let through crosses, and its target takes the guest."""
    (hand_over,) = steps_sent(world)
    world.sent.clear()
    hand = world.claim(hand_over)
    assert hand is not None
    assert chain.stand_by(world.context, hand)
    world.complete(world.take())
    world.sent.clear()
    world.complete(hand)


def test_with_room_nobody_waits(world: World) -> None:
    prepare(world, "web")
    assert world.picture() == "dddddddd.r."
    (message,) = world.sent
    assert message.task == "haulier.hand_over", "no message more than without a gate"


def test_second_one_waits_prepared(world: World) -> None:
    allow(world, 1)
    prepare(world, "web")
    prepare(world, "db")
    assert (world.picture(1), world.picture(2)) == ("dddddddd.r.", PREPARED)
    assert holds(world) == [(2, "move", "1 move their RAM, 1 may")]
    document = migrations.show_migration(world.context, 2)
    assert (document["state"], document["waiting_for"]["limit"]) == ("running", "cluster")
    assert migrations.show_migration(world.context, 1)["waiting_for"] is None


def test_end_of_a_move_lets_the_next_through(world: World) -> None:
    """Not the end of the whole migration: what is left to do on the source moves no RAM."""
    allow(world, 1)
    prepare(world, "web")
    first = steps_sent(world)
    prepare(world, "db")
    world.sent[:] = first
    finish_move(world)
    assert world.state(1) == "handed_over"
    assert [message.task for message in world.sent] == ["haulier.admit", "haulier.retire_source"]
    admit(world.context)
    assert world.picture(2) == "dddddddd.r."
    assert list_queue(world.context) == []


def test_failed_move_lets_the_next_through(world: World) -> None:
    allow(world, 1)
    prepare(world, "web")
    hand = world.take()
    assert chain.stand_by(world.context, hand)
    move = world.take()
    prepare(world, "db")
    world.sent.clear()
    world.fail(move)
    world.fail(hand)
    while not any(message.task == "haulier.admit" for message in world.sent):
        held = world.take()
        assert held.undo
        assert world.picture(2) == PREPARED
        chain.complete_undo(world.context, held)
    assert world.state(1) == "rolling_back", "its mirrors are not undone yet"
    admit(world.context)
    assert world.picture(2) == "dddddddd.r."


def test_move_that_ends_while_many_begin_lets_the_next_through(world: World) -> None:
    """Where there is always room for others to begin, those that are prepared do not wait for the end of that."""
    allow(world, 1)
    prepare(world, "web")
    prepare(world, "db")
    limits = [LimitChange(LimitScope.OUT, ("alpha",), 2), LimitChange(LimitScope.IN, ("beta",), 100)]
    set_limits(world.context, limits)
    for number in range(6):
        world.add_vm(f"vm{number}")
        world.file(f"vm{number}")
    set_limits(world.context, [LimitChange(LimitScope.OUT, ("alpha",), 100)])

    def dispatch(message: Message) -> None:
        """The first of those that begin are committed, and a move ends."""
        if message.task == "haulier.check":
            world.change(Attempt, Attempt.id == 1, moved_at=now())

    admit(replace(world.context, dispatch=dispatch))
    assert world.count(Attempt) == 8
    assert world.picture(2) == "dddddddd.r."


def test_order_is_the_queues(world: World) -> None:
    allow(world, 0)
    prepare(world, "web")
    prepare(world, "db")
    world.change(Migration, Migration.id == 2, rank=0)
    assert [each["id"] for each in list_queue(world.context)] == [2, 1]
    allow(world, 1)
    admit(world.context)
    assert (world.picture(1), world.picture(2)) == (PREPARED, "dddddddd.r.")


@pytest.mark.parametrize("scope", [LimitScope.OUT, LimitScope.IN])
def test_nodes_have_limits_of_their_own(world: World, scope: LimitScope) -> None:
    node = "alpha" if scope is LimitScope.OUT else "beta"
    set_limits(world.context, [LimitChange(scope, (node,), 0, Gate.MOVE)])
    prepare(world, "web")
    assert world.picture() == PREPARED
    set_limits(world.context, [LimitChange(scope, (node,), None, Gate.MOVE)])
    admit(world.context)
    assert world.picture() == "dddddddd.r."


def test_cancelled_at_the_gate(world: World) -> None:
    """Nobody works at it who would notice."""
    allow(world, 0)
    prepare(world, "web")
    world.sent.clear()
    migrations.cancel_migration(world.context, 1)
    assert world.state() == "rolling_back"
    assert Phase.MIRROR_DISKS in world.undo_all()
    assert world.state() == "cancelled"
    allow(world, None)
    admit(world.context)
    assert world.sent == []


def test_time_is_over_at_the_gate(world: World) -> None:
    allow(world, 0)
    prepare(world, "web")
    world.change(Migration, timeout_s=1.0)
    world.change(Attempt, started_at=world.migration().created_at.replace(year=2020))
    world.sent.clear()
    world.sweep()
    assert world.state() == "rolling_back"
    assert world.undo_all()


def test_waiting_at_the_gate_takes_nothing_of_its_time(world: World) -> None:
    allow(world, 0)
    prepare(world, "web")
    hour = timedelta(hours=1)
    world.change(Migration, timeout_s=60.0)
    world.change(Attempt, started_at=now() - hour, at_gate_since=now() - hour)
    world.sweep()
    assert world.state() == "running"
    world.change(Attempt, moving_at=now() - hour / 2, at_gate_since=now() - hour)
    world.sweep()
    assert world.state() == "rolling_back", "half an hour of it was work"


def test_node_is_lost_at_the_gate(world: World) -> None:
    allow(world, 0)
    prepare(world, "web")
    world.sent.clear()
    world.silence("beta")
    declare_lost(world.context, "beta", is_off=True)
    world.settle()
    assert world.state() == "undone"


def test_message_that_was_lost_is_made_up_for(world: World) -> None:
    allow(world, 0)
    prepare(world, "web")
    allow(world, None)
    world.sent.clear()
    admit(world.context)
    assert len(steps_sent(world)) == 1
    world.sent.clear()
    admit(world.context)
    assert world.sent == [], "and not let through twice"
    world.let_time_pass()
    world.sweep()
    assert [message.task for message in world.sent] == ["haulier.hand_over"]


def test_offline_migration_has_no_gate(world: World) -> None:
    allow(world, 0)
    world.add_vm("off", state="stopped", pid=None)
    world.file("off", offline=True)
    world.complete(world.go(Phase.COPY_COLD))
    assert [message.task for message in world.sent] == ["haulier.hand_over"]


def test_those_at_the_gate_are_at_work(world: World) -> None:
    """They hold their place of the first gate, and their volumes."""
    allow(world, 0)
    prepare(world, "web")
    set_limits(world.context, [LimitChange(LimitScope.CLUSTER, (), 1)])
    world.add_vm("db")
    world.file("db")
    assert holds(world) == [
        (1, "move", "none may move their RAM: the limit is 0"),
        (2, "prepare", "1 are at work in the cluster, 1 may"),
    ]
    assert world.count(Attempt) == 1, "the second has not begun"
