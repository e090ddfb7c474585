"""A roll meets a node that is lost, spoilt, or cannot be emptied or filled: it says so, and goes on or stops."""

from __future__ import annotations

import pytest

from haulier.clock import now
from haulier.services import evacuations, groups, rolls, windows
from haulier.services.groups import GroupChange
from haulier.services.lost_nodes import declare_lost
from haulier.services.vms import set_policy
from models import Evacuation, EvacuationPolicy, Event, Node, Vm
from tests.unit.services.hall import beat, hold, play, show, where
from tests.unit.services.rolling import (
    HELD,
    SMALL,
    let_holds_end,
    open_rack,
    shown,
    states,
)
from tests.unit.services.world import BROKEN, World


@pytest.fixture
def rack(hall: World) -> World:
    return open_rack(hall)


def test_lost_node_is_left_out_with_its_reason_and_counts_as_out(rack: World) -> None:
    rack.silence("beta")
    declare_lost(rack.context, "beta", is_off=True)
    rolls.begin_roll(rack.context, "rack", HELD)
    document = shown(rack)
    assert states(rack) == ["waiting", "left_out", "waiting"]
    assert document["nodes"][1]["problem"]["code"] == "node_lost"
    assert "beta (lost)" in document["waiting_for"]
    groups.change_group(rack.context, "rack", GroupChange(at_once=2))
    play(rack)
    for _ in range(2):
        let_holds_end(rack)
    assert (states(rack), shown(rack)["state"]) == (["done", "left_out", "done"], "done")


def test_node_that_is_lost_while_it_is_out_is_left_out(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", HELD)
    rack.silence("alpha")
    declare_lost(rack.context, "alpha", is_off=True)
    beat(rack)
    document = shown(rack)
    assert (states(rack)[0], document["nodes"][0]["evacuation"]) == ("left_out", 1)
    assert document["nodes"][0]["problem"]["code"] == "node_lost"
    assert document["nodes"][1]["problem"]["code"] == "group_full", "one may be out, and one is"


def test_node_that_something_keeps_from_being_empty_holds_the_roll_and_says_why(rack: World) -> None:
    set_policy(rack.context, "web", EvacuationPolicy.STAY)
    rack.add_vm("late")
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    windows.sweep_windows(rack.context)
    beat(rack, blocked_too=True)
    document = shown(rack)
    assert states(rack) == ["draining", "waiting", "waiting"]
    assert document["waiting_for"].startswith("alpha: web cannot leave: VM web stays by its policy")
    assert document["nodes"][0]["problem"]["code"] == "policy_stay"
    set_policy(rack.context, "web", EvacuationPolicy.LIVE)
    beat(rack, blocked_too=True)
    play(rack)
    assert states(rack) == ["drained", "waiting", "waiting"]


def test_of_several_that_are_out_the_one_that_needs_a_person_is_told(rack: World) -> None:
    groups.change_group(rack.context, "rack", GroupChange(at_once=2))
    rack.change(Vm, Vm.name.in_(("db", "mail")), node_id=2)
    set_policy(rack.context, "db", EvacuationPolicy.STAY)
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    beat(rack)
    assert (states(rack), show(rack, 2)["state"]) == (["drained", "draining", "waiting"], "blocked")
    assert shown(rack)["waiting_for"].startswith("beta: db cannot leave: VM db stays by its policy")


def test_node_whose_rows_were_spoilt_holds_no_other_and_says_so(rack: World) -> None:
    rack.change(Vm, Vm.name == "web", definition={})
    rolls.begin_roll(rack.context, "rack", HELD)
    assert shown(rack)["waiting_for"].startswith("alpha cannot begin: alpha cannot be planned: KeyError")
    beat(rack)
    assert (states(rack), shown(rack)["nodes"][0]["problem"]["code"]) == (
        ["waiting", "drained", "waiting"],
        "roll_broken",
    )


def test_node_that_is_filled_before_it_was_empty_was_not_done(rack: World) -> None:
    set_policy(rack.context, "web", EvacuationPolicy.STAY)
    rack.add_vm("late")
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    evacuations.restore(rack.context, "alpha")
    play(rack)
    assert states(rack) == ["left_out", "drained", "waiting"]
    assert shown(rack)["nodes"][0]["problem"]["code"] == "never_drained"


def let_return_fail(world: World) -> None:
    """The hold is over, and what comes back does not start there."""
    world.change(Evacuation, Evacuation.restore_at.is_not(None), restore_at=now())
    windows.sweep_windows(world.context)
    play(world, broken={"alpha": BROKEN})
    assert (show(world)["state"], where(world)["web"]) == ("restored", "beta")


def test_node_that_not_all_comes_back_to_holds_the_others_until_somebody_has_looked(rack: World) -> None:
    """It may be what was done with it, and would be done with all others next."""
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    let_return_fail(rack)
    document = shown(rack)
    assert (document["state"], states(rack)) == ("paused", ["done", "waiting", "waiting"])
    assert document["waiting_for"] == "it is paused: not all is back on alpha: web: it broke; haulier roll resume 1"
    assert document["nodes"][0]["problem"]["code"] == "not_all_back"
    assert rack.count(Evacuation) == 1
    evacuations.restore(rack.context, "alpha")
    play(rack)
    assert where(rack)["web"] == "alpha"
    rolls.resume(rack.context, 1)
    assert states(rack) == ["done", "drained", "waiting"]


def test_last_node_that_not_all_comes_back_to_is_told_at_the_end(rack: World) -> None:
    groups.change_group(rack.context, "rack", GroupChange(remove=["gamma", "beta"]))
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    let_return_fail(rack)
    document = shown(rack)
    assert (document["state"], document["nodes"][0]["problem"]["code"]) == ("done", "not_all_back")
    assert "paused" not in rack.kinds("roll.")


def test_node_that_does_not_come_up_again_holds_the_others_also_where_it_had_no_vms(rack: World) -> None:
    """Else all that have none would be rebooted after it."""
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    let_holds_end(rack)
    rack.silence("beta")
    let_holds_end(rack)
    beat(rack)
    assert states(rack) == ["done", "restoring", "waiting"]
    assert shown(rack)["waiting_for"].startswith("beta: the worker of node beta does not run (Start it")
    assert groups.show_group(rack.context, "rack")["nodes"][1]["out"] == "evacuation 2 is restoring"
    rack.change(Node, heartbeat_at=now())
    beat(rack)
    play(rack)
    assert states(rack) == ["done", "done", "drained"]


def test_node_to_come_is_no_worse_a_place_than_others(rack: World) -> None:
    rack.change(Node, Node.name.in_(("gamma", "delta")), state="maintenance")
    groups.change_group(rack.context, "rack", GroupChange(remove=["gamma"]))
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    assert where(rack)["web"] == "beta", "which is next"
    let_holds_end(rack)
    assert where(rack)["web"] == "alpha"


def test_what_waits_for_the_queue_is_told_by_the_roll(rack: World) -> None:
    hold(rack)
    rolls.begin_roll(rack.context, "rack", HELD)
    assert shown(rack)["waiting_for"].startswith("alpha: 1 waits, web, for: none may be at work")


def test_events_name_the_node_the_roll_and_the_reason(rack: World) -> None:
    rack.change(Node, Node.name != "alpha", facts=SMALL)
    rolls.begin_roll(rack.context, "rack", HELD)
    with rack.context.database.read() as session:
        event = session.query(Event).filter(Event.kind == "roll.node_refused").one()
    assert (event.node, event.data["roll"], event.data["problem"]["code"]) == ("alpha", 1, "no_ram")
    assert rack.count(Vm) == 3
