"""Two that begin at one moment in a group, on both databases: one waits for the other, and then there is no room."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from haulier.errors import Refused
from haulier.services import evacuations, groups, roll_steps, rolls
from haulier.services.evacuation_wishes import Wishes
from haulier.services.rolls import RollWishes
from models import Database, Evacuation, Roll, RollNode
from tests.unit.services.world import World, between, neighbour, open_world


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    """Alpha and beta are a group, of which one may be out; they are empty."""
    with open_world(Database(database_url), tmp_path) as world:
        world.populate()
        groups.add_group(world.context, "rack", ["alpha", "beta"])
        yield world


def test_second_one_waits_for_the_first_and_is_refused(world: World) -> None:
    """The first has found room, and has not written yet that it took it."""
    with neighbour(world) as other:
        late = partial(evacuations.evacuate, other.context, "beta")
        with between(world, "INSERT INTO evacuation", late) as second:
            evacuations.evacuate(world.context, "alpha")
        with pytest.raises(Refused, match=r"1 is: alpha \(evacuation 1 is "):
            second.result()
    assert world.count(Evacuation) == 1


def test_two_that_look_at_a_roll_begin_one_node(world: World) -> None:
    with neighbour(world) as other:
        look = partial(roll_steps.go_on, other.context, 1)
        with between(world, "INSERT INTO evacuation", look) as second:
            rolls.begin_roll(world.context, "rack", RollWishes(hold_s=1800.0))
        second.result()
    assert (world.count(Evacuation), world.kinds("roll.node_")) == (1, ["begun"])


def test_pause_waits_for_the_turn_that_is_being_written(world: World) -> None:
    with neighbour(world) as other:
        pause = partial(rolls.pause, other.context, 1)
        with between(world, "INSERT INTO evacuation", pause) as paused:
            rolls.begin_roll(world.context, "rack", RollWishes(hold_s=1800.0))
        assert (paused.result()["state"], paused.result()["counts"]["waiting"]) == ("paused", 1)
    assert world.count(Evacuation) == 1


def test_two_that_begin_to_roll_begin_one_roll(world: World) -> None:
    with neighbour(world) as other:
        begin = partial(rolls.begin_roll, other.context, "rack")
        with between(world, "INSERT INTO roll ", begin) as second:
            rolls.begin_roll(world.context, "rack")
        assert second.result()["again"]
    assert (world.count(Roll), world.count(RollNode)) == (1, 2)


def test_group_that_is_removed_meanwhile_is_rolled_through_by_nobody(world: World) -> None:
    with neighbour(world) as other:
        begin = partial(rolls.begin_roll, other.context, "rack")
        with between(world, "DELETE FROM node_group ", begin) as late:
            groups.remove_group(world.context, "rack")
        with pytest.raises(Refused, match="there is no group called rack"):
            late.result()
    assert world.count(Roll) == 0


def test_turn_of_a_roll_that_moved_on_is_not_begun(world: World) -> None:
    rolls._file(world.context, "rack", RollWishes())
    rolls.cancel(world.context, 1)
    with pytest.raises(Refused, match="roll 1 is cancelled"):
        evacuations.evacuate(world.context, "alpha", Wishes(roll_id=1))
    assert world.count(Evacuation) == 0
