"""Of a group no more nodes are emptied at once than may be, whoever asks, also at one moment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from haulier.clock import now
from haulier.errors import Refused
from haulier.services import evacuations, groups, rolls, windows
from haulier.services.evacuation_wishes import Wishes
from haulier.services.groups import GroupChange
from haulier.services.lost_nodes import declare_lost
from haulier.services.windows import Times
from models import Evacuation, MaintenanceWindow, Node, NodeGroup, NodeGroupNode, Roll, Vm
from tests.unit.services.hall import play, show, state_of
from tests.unit.services.world import World, between

RACK = ("alpha", "beta", "gamma")


@pytest.fixture
def house(hall: World) -> World:
    """The hall with `web` alone on alpha; the others are on delta."""
    hall.change(Vm, Vm.name != "web", node_id=4)
    return hall


@pytest.fixture
def rack(house: World) -> World:
    """Alpha, beta and gamma are a group, of which one may be out."""
    groups.add_group(house.context, "rack", RACK)
    return house


def refused(act: Callable[[], Any]) -> Refused:
    with pytest.raises(Refused) as caught:
        act()
    return caught.value


def test_group_is_made_shown_changed_and_removed(hall: World) -> None:
    made = groups.add_group(hall.context, "rack", ["beta", "alpha", "beta"], at_once=2)
    nodes = [{"node": name, "state": "online", "out": None} for name in ("alpha", "beta")]
    assert made == {"name": "rack", "at_once": 2, "nodes": nodes, "roll": None}
    change = GroupChange(at_once=1, add=["delta"], remove=["alpha"])
    assert [each["node"] for each in groups.change_group(hall.context, "rack", change)["nodes"]] == ["beta", "delta"]
    assert [each["at_once"] for each in groups.list_groups(hall.context)] == [1]
    assert groups.change_group(hall.context, "rack", GroupChange(add=["beta"])) == groups.show_group(
        hall.context, "rack"
    )
    assert groups.remove_group(hall.context, "rack")["name"] == "rack"
    assert [hall.count(table) for table in (NodeGroup, NodeGroupNode)] == [0, 0]
    assert hall.kinds("group.") == ["added", "changed", "changed", "removed"]


@pytest.mark.parametrize(
    ("name", "nodes", "at_once", "code"),
    [
        ("a b", ["alpha"], 1, "bad_name"),
        ("show", ["alpha"], 1, "bad_name"),
        ("pause", ["alpha"], 1, "bad_name"),
        ("rack", [], 1, "bad_group"),
        ("rack", ["alpha"], 0, "bad_group"),
        ("rack", ["alpha"], -1, "bad_group"),
        ("rack", ["alpha"], 1 << 70, "bad_group"),
        ("rack", ["alpha", "omega"], 1, "unknown_node"),
        ("there", ["alpha"], 1, "group_exists"),
    ],
)
def test_what_is_no_group_is_refused(hall: World, name: str, nodes: list[str], at_once: int, code: str) -> None:
    groups.add_group(hall.context, "there", ["beta"])
    assert refused(lambda: groups.add_group(hall.context, name, nodes, at_once=at_once)).code == code
    assert hall.count(NodeGroup) == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (GroupChange(), "nothing_to_set"),
        (GroupChange(at_once=0), "bad_group"),
        (GroupChange(add=["omega"]), "unknown_node"),
        (GroupChange(remove=["delta"]), "not_in_group"),
        (GroupChange(remove=RACK), "bad_group"),
    ],
)
def test_change_that_makes_no_sense_is_refused(rack: World, change: GroupChange, code: str) -> None:
    before = groups.show_group(rack.context, "rack")
    assert refused(lambda: groups.change_group(rack.context, "rack", change)).code == code
    assert groups.show_group(rack.context, "rack") == before


def test_unknown_group_is_told_with_the_one_that_was_meant(rack: World) -> None:
    acts: tuple[Callable[[], Any], ...] = (
        lambda: groups.show_group(rack.context, "rock"),
        lambda: groups.remove_group(rack.context, "rock"),
        lambda: groups.change_group(rack.context, "rock", GroupChange(at_once=2)),
        lambda: rolls.begin_roll(rack.context, "rock"),
        lambda: rolls.plan_roll(rack.context, "rock"),
        lambda: windows.add_window(rack.context, None, Times(3600.0, cron="0 2 * * *"), group="rock"),
    )
    for act in acts:
        error = refused(act)
        assert (error.code, error.problem.hint) == ("unknown_group", "Did you mean rack?")


def test_group_stays_while_a_roll_or_a_window_needs_it(rack: World) -> None:
    windows.add_window(rack.context, None, Times(3600.0, cron="0 2 * * *"), group="rack")
    assert refused(lambda: groups.remove_group(rack.context, "rack")).code == "window_there"
    windows.remove_window(rack.context, 1)
    rolls.begin_roll(rack.context, "rack")
    assert groups.show_group(rack.context, "rack")["roll"] == 1
    assert refused(lambda: groups.remove_group(rack.context, "rack")).code == "roll_open"
    rolls.cancel(rack.context, 1)
    groups.remove_group(rack.context, "rack")
    assert (rack.count(Roll), rack.count(NodeGroup), rack.count(MaintenanceWindow)) == (1, 0, 0)


# -- no more at once ---------------------------------------------------------------------------------------------------


def test_second_node_of_a_group_is_refused_with_numbers(rack: World) -> None:
    evacuations.evacuate(rack.context, "alpha")
    error = refused(lambda: evacuations.evacuate(rack.context, "beta"))
    assert error.code == "group_full"
    assert error.problem.message == "of group rack 1 may be out at once, and 1 is: alpha (evacuation 1 is running)"
    assert error.problem.hint == "haulier group set rack --at-once 2"
    assert (rack.count(Evacuation), state_of(rack, "beta")) == (1, "online")
    assert evacuations.evacuate(rack.context, "alpha")["again"], "that is no other one"
    evacuations.evacuate(rack.context, "delta")
    groups.change_group(rack.context, "rack", GroupChange(at_once=2))
    evacuations.evacuate(rack.context, "beta")
    assert refused(lambda: evacuations.evacuate(rack.context, "gamma")).problem.hint.endswith("--at-once 3")


def test_plan_names_it_as_one_of_the_refusals(rack: World) -> None:
    assert evacuations.plan_evacuation(rack.context, "beta")["refusals"] == []
    evacuations.evacuate(rack.context, "alpha")
    (refusal,) = evacuations.plan_evacuation(rack.context, "beta")["refusals"]
    assert refusal["code"] == "group_full"
    rack.change(Node, Node.name == "gamma", state="maintenance")
    assert evacuations.plan_evacuation(rack.context, "alpha")["refusals"] == [], "it is out already"
    assert evacuations.evacuate(rack.context, "alpha")["again"]


@pytest.mark.parametrize("state", ["draining", "drained", "maintenance"])
def test_nodes_that_take_nothing_are_out(rack: World, state: str) -> None:
    rack.change(Node, Node.name == "gamma", state=state)
    assert f"gamma ({state})" in refused(lambda: evacuations.evacuate(rack.context, "alpha")).problem.message


def test_lost_node_is_out(rack: World) -> None:
    rack.silence("gamma")
    declare_lost(rack.context, "gamma", is_off=True)
    assert "gamma (lost)" in refused(lambda: evacuations.evacuate(rack.context, "alpha")).problem.message
    assert [each["out"] for each in groups.show_group(rack.context, "rack")["nodes"]] == [None, None, "lost"]


def test_node_is_out_until_it_is_filled_again(rack: World) -> None:
    evacuations.evacuate(rack.context, "alpha")
    play(rack)
    evacuations.restore(rack.context, "alpha")
    assert (show(rack)["state"], state_of(rack, "alpha")) == ("restoring", "online")
    error = refused(lambda: evacuations.evacuate(rack.context, "beta"))
    assert "alpha (evacuation 1 is restoring)" in error.problem.message
    play(rack)
    assert evacuations.evacuate(rack.context, "beta")["id"] == 2


def test_node_that_is_out_already_may_be_emptied(rack: World) -> None:
    """It takes nothing by hand; to empty it makes no further one."""
    rack.change(Node, Node.name == "alpha", state="maintenance")
    assert evacuations.evacuate(rack.context, "alpha")["state"] == "running"


def test_each_of_several_groups_is_asked(rack: World) -> None:
    groups.add_group(rack.context, "row", ["alpha", "delta"])
    evacuations.evacuate(rack.context, "delta")
    rack.change(Node, Node.name == "gamma", state="maintenance")
    error = refused(lambda: evacuations.evacuate(rack.context, "alpha"))
    assert [problem.code for problem in error.problems] == ["group_full", "group_full"]
    assert ["rack" in error.problems[0].message, "row" in error.problems[1].message] == [True, True]


def test_two_that_begin_at_one_moment_do_not_both_slip_through(rack: World) -> None:
    """The one has found room, and before he writes the other one has begun."""
    other = partial(evacuations.evacuate, rack.context, "beta")
    with between(rack, "BEGIN IMMEDIATE", other) as begun:
        assert refused(lambda: evacuations.evacuate(rack.context, "alpha")).code == "group_full"
    assert begun.result()["node"] == "beta"
    assert (rack.count(Evacuation), state_of(rack, "alpha")) == (1, "online")


def test_window_is_refused_too_and_says_so(rack: World) -> None:
    windows.add_window(rack.context, "beta", Times(3600.0, cron="0 2 * * *"))
    rack.change(MaintenanceWindow, next_at=now())
    evacuations.evacuate(rack.context, "alpha")
    windows.sweep_windows(rack.context)
    (window,) = windows.list_windows(rack.context)
    assert (window["problem"]["code"], state_of(rack, "beta")) == ("group_full", "online")


# -- hold --------------------------------------------------------------------------------------------------------------


def test_held_node_is_filled_by_itself(house: World) -> None:
    evacuations.evacuate(house.context, "alpha", Wishes(hold_s=1800.0))
    assert (show(house)["hold_s"], show(house)["restore_at"]) == (1800.0, None), "it is not empty yet"
    play(house)
    document = show(house)
    assert document["state"] == "drained"
    assert "; all is brought back at 20" in document["waiting_for"]
    windows.ask_for_windows(house.context)
    assert house.sent == [], "not before its time"
    house.change(Evacuation, restore_at=now())
    windows.ask_for_windows(house.context)
    assert [message.task for message in house.sent] == ["haulier.windows"]
    house.sent.clear()
    windows.sweep_windows(house.context)
    play(house)
    assert (show(house)["state"], state_of(house, "alpha")) == ("restored", "online")


def test_held_for_no_time_it_is_filled_at_once(house: World) -> None:
    evacuations.evacuate(house.context, "alpha", Wishes(hold_s=0.0))
    play(house)
    windows.sweep_windows(house.context)
    play(house)
    assert show(house)["state"] == "restored"


def test_hold_begins_anew_where_something_was_started_there(house: World) -> None:
    evacuations.evacuate(house.context, "alpha", Wishes(hold_s=1800.0))
    play(house)
    house.add_vm("late")
    evacuations.evacuate(house.context, "alpha")
    assert (show(house)["state"], show(house)["restore_at"]) == ("running", None)
    play(house)
    assert show(house)["restore_at"] > show(house)["drained_at"]


def test_hold_that_is_wished_later_counts(house: World) -> None:
    evacuations.evacuate(house.context, "alpha")
    assert evacuations.evacuate(house.context, "alpha", Wishes(hold_s=1800.0))["hold_s"] == 1800.0
    play(house)
    first = show(house)
    assert first["restore_at"] is not None
    assert evacuations.evacuate(house.context, "alpha", Wishes(hold_s=3600.0))["restore_at"] > first["restore_at"]
    assert evacuations.evacuate(house.context, "alpha", Wishes(hold_s=60.0))["restore_at"] < first["restore_at"]
    assert show(house)["drained_at"] == first["drained_at"]


def test_hold_that_is_wished_later_puts_off_no_end_of_a_window(house: World) -> None:
    end = now() + timedelta(hours=1)
    evacuations.evacuate(house.context, "alpha", Wishes(restore_at=end, window=True, cause="window 1"))
    play(house)
    assert evacuations.evacuate(house.context, "alpha", Wishes(hold_s=7200.0))["restore_at"] == end.isoformat()
    assert evacuations.evacuate(house.context, "alpha", Wishes(hold_s=60.0))["restore_at"] < end.isoformat()


def test_node_that_took_nothing_before_is_not_filled_by_itself(house: World) -> None:
    house.change(Node, Node.name == "alpha", state="maintenance")
    evacuations.evacuate(house.context, "alpha", Wishes(hold_s=1800.0))
    play(house)
    assert (show(house)["hold_s"], show(house)["restore_at"]) == (None, None)


@pytest.mark.parametrize("hold_s", [-1.0, 1e9, float("inf"), float("nan")])
def test_hold_that_cannot_be_is_refused(rack: World, hold_s: float) -> None:
    times = Times(3600.0, cron="0 2 * * *", hold_s=hold_s)
    acts: tuple[Callable[[], Any], ...] = (
        lambda: evacuations.evacuate(rack.context, "alpha", Wishes(hold_s=hold_s)),
        lambda: evacuations.plan_evacuation(rack.context, "alpha", Wishes(hold_s=hold_s)),
        lambda: rolls.begin_roll(rack.context, "rack", rolls.RollWishes(hold_s)),
        lambda: rolls.plan_roll(rack.context, "rack", rolls.RollWishes(hold_s)),
        lambda: windows.add_window(rack.context, "alpha", times),
    )
    assert {refused(act).code for act in acts} == {"bad_hold"}
    assert [rack.count(table) for table in (Evacuation, Roll, MaintenanceWindow)] == [0, 0, 0]
