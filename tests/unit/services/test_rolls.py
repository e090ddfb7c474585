"""A roll takes each node of its group in turn, by what the rows say: whoever fails, dies, or does something by hand."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from haulier.clock import now
from haulier.services import evacuations, groups, roll_view, rolls, rules, windows
from haulier.services.evacuation_wishes import Wishes
from haulier.services.groups import GroupChange
from haulier.services.lost_nodes import declare_lost
from haulier.services.roll_steps import go_on
from haulier.services.rolls import RollWishes
from haulier.services.vms import set_policy
from models import Evacuation, EvacuationPolicy, Node, Roll, RollNode, RuleKind
from tests.unit.services.hall import GIB, beat, play, show, state_of, where
from tests.unit.services.rolling import (
    HELD,
    RACK,
    SMALL,
    let_holds_end,
    let_time_pass,
    open_rack,
    refused,
    shown,
    states,
)
from tests.unit.services.world import World, between


@pytest.fixture
def rack(hall: World) -> World:
    return open_rack(hall)


# -- how it goes -------------------------------------------------------------------------------------------------------


def test_each_node_is_emptied_and_filled_in_turn(rack: World) -> None:
    document = rolls.begin_roll(rack.context, "rack", HELD)
    assert (document["id"], document["state"], document["again"]) == (1, "running", False)
    assert states(rack) == ["draining", "waiting", "waiting"]
    play(rack)
    assert states(rack) == ["drained", "waiting", "waiting"]
    assert "alpha is empty, until 20" in shown(rack)["waiting_for"]
    let_holds_end(rack)
    assert states(rack) == ["done", "drained", "waiting"], "beta had no VMs, and has its turn like others"
    assert where(rack)["web"] == "alpha"
    let_holds_end(rack)
    assert states(rack) == ["done", "done", "drained"]
    let_holds_end(rack)
    document = shown(rack)
    assert (document["state"], document["counts"], document["waiting_for"]) == (
        "done",
        {"done": 3},
        "nothing: it is over",
    )
    assert document["finished_at"] is not None
    assert {state_of(rack, node) for node in RACK} == {"online"}
    assert rack.kinds("roll.") == ["begun", *["node_begun", "node_done"] * 3, "done"]
    assert [each["evacuation"] for each in document["nodes"]] == [1, 2, 3]


def test_as_many_are_out_as_the_group_allows(rack: World) -> None:
    rules.add_rule(rack.context, "aside", RuleKind.ONLY_ON, vms=["web"], nodes=["alpha", "delta"])
    groups.change_group(rack.context, "rack", GroupChange(at_once=2))
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    assert states(rack) == ["drained", "drained", "waiting"]
    let_holds_end(rack)
    assert states(rack) == ["done", "done", "drained"]


def test_group_that_allows_more_meanwhile_is_told_to_its_roll(rack: World) -> None:
    rules.add_rule(rack.context, "aside", RuleKind.ONLY_ON, vms=["web"], nodes=["alpha", "delta"])
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    groups.change_group(rack.context, "rack", GroupChange(at_once=3))
    play(rack)
    assert states(rack) == ["drained", "drained", "drained"]


def test_without_hold_it_waits_until_somebody_brings_the_vms_back(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack")
    play(rack)
    windows.sweep_windows(rack.context)
    beat(rack)
    assert shown(rack)["waiting_for"] == "alpha is empty, until somebody calls haulier restore alpha"
    evacuations.restore(rack.context, "alpha")
    assert states(rack) == ["restoring", "waiting", "waiting"]
    play(rack)
    assert states(rack) == ["done", "drained", "waiting"]


def test_plan_touches_nothing_and_names_what_would_be_done(rack: World) -> None:
    set_policy(rack.context, "web", EvacuationPolicy.STAY)
    rack.add_vm("late")
    rack.silence("gamma")
    declare_lost(rack.context, "gamma", is_off=True)
    plan = rolls.plan_roll(rack.context, "rack", HELD)
    assert (plan["id"], plan["group"], plan["at_once"], plan["roll"]) == (None, "rack", 1, None)
    alpha, beta, gamma = plan["nodes"]
    assert (alpha["place"], alpha["state"], [move["vm"] for move in alpha["plan"]]) == (1, "waiting", ["late"])
    assert [(each["vm"], each["code"]) for each in alpha["blocked"]] == [("web", "policy_stay")]
    assert [each["code"] for each in alpha["refusals"]] == ["group_full"]
    assert (beta["plan"], beta["state"]) == ([], "waiting")
    assert (gamma["state"], gamma["problem"]["code"]) == ("left_out", "node_lost")
    assert (rack.count(Roll), rack.count(Evacuation), rack.kinds("roll.")) == (0, 0, [])


def test_plan_knows_the_deadline_and_the_hold_before_it(rack: World) -> None:
    wishes = RollWishes(hold_s=600.0, deadline=now() + timedelta(seconds=602))
    (late, *_) = rolls.plan_roll(rack.context, "rack", wishes)["nodes"]
    assert [each["code"] for each in late["refusals"]] == ["deadline_too_near"]


def test_asked_twice_it_is_the_one_that_runs(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", HELD)
    document = rolls.begin_roll(rack.context, "rack")
    assert (document["id"], document["again"], document["hold_s"]) == (1, True, 1800.0)
    assert (rack.count(Roll), rack.count(Evacuation)) == (1, 1)


@pytest.mark.parametrize(
    ("hold_s", "left_s", "code"),
    [(None, -1, "deadline_over"), (600.0, 600, "deadline_too_near"), (600.0, 60, "deadline_too_near")],
)
def test_times_that_cannot_be_are_refused(rack: World, hold_s: float | None, left_s: float, code: str) -> None:
    wishes = RollWishes(hold_s, now() + timedelta(seconds=left_s))
    assert refused(lambda: rolls.begin_roll(rack.context, "rack", wishes)).code == code
    assert refused(lambda: rolls.plan_roll(rack.context, "rack", wishes)).code == code
    assert rack.count(Roll) == 0


def test_unknown_rolls_and_such_as_are_over_are_refused(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", HELD)
    rolls.cancel(rack.context, 1)
    for act in (rolls.pause, rolls.resume, rolls.cancel):
        assert refused(partial(act, rack.context, 1)).code == "roll_over"
        assert refused(partial(act, rack.context, 7)).code == "unknown_roll"
    assert refused(lambda: shown(rack, 1 << 70)).code == "unknown_roll"


# -- who dies, and what is lost ----------------------------------------------------------------------------------------


def test_whoever_dies_after_the_wish_was_written_is_replaced_by_beat(rack: World) -> None:
    rolls._file(rack.context, "rack", HELD)
    rack.sent.clear()
    assert (states(rack), shown(rack)["waiting_for"]) == (["waiting"] * 3, "alpha is next")
    beat(rack)
    assert states(rack) == ["draining", "waiting", "waiting"]
    beat(rack)
    assert rack.count(Evacuation) == 1


def test_whoever_dies_after_an_evacuation_was_filed_leaves_its_turn_written(rack: World) -> None:
    """Its VMs are not placed yet, and no message was sent."""
    roll_id, _ = rolls._file(rack.context, "rack", HELD)
    evacuations._file(rack.context, "alpha", Wishes(hold_s=1800.0, roll_id=roll_id))
    rack.sent.clear()
    assert states(rack) == ["draining", "waiting", "waiting"]
    beat(rack)
    assert (rack.count(Evacuation), show(rack)["state"], show(rack)["hold_s"]) == (1, "running", 1800.0)


def test_lost_messages_are_made_up_for_by_beat(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack, deaf=True)
    beat(rack)
    rack.change(Evacuation, restore_at=now())
    windows.sweep_windows(rack.context)
    play(rack, deaf=True)
    beat(rack)
    beat(rack)
    assert states(rack) == ["done", "drained", "waiting"]


def test_two_that_look_at_one_moment_begin_one_node(rack: World) -> None:
    """The one has found that it is alpha's turn, and before he writes it the other one has begun it."""
    rolls._file(rack.context, "rack", HELD)
    look = partial(go_on, rack.context, 1)
    with between(rack, "INSERT INTO evacuation", look):
        pass_on = rolls.begin_roll(rack.context, "rack", HELD)
    look()
    assert (pass_on["id"], rack.count(Evacuation)) == (1, 1)
    assert rack.kinds("roll.node_") == ["begun"]


def test_what_is_paused_while_places_are_looked_for_begins_nothing(rack: World) -> None:
    rolls._file(rack.context, "rack", HELD)
    assert rolls.pause(rack.context, 1)["state"] == "paused"
    wishes = Wishes(hold_s=1800.0, roll_id=1)
    assert refused(lambda: evacuations.evacuate(rack.context, "alpha", wishes)).code == "roll_moved_on"
    assert (rack.count(Evacuation), state_of(rack, "alpha")) == (0, "online")


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_refused_node_lets_others_go_first_and_is_asked_again(rack: World) -> None:
    rack.change(Node, Node.name != "alpha", facts=SMALL)
    rolls.begin_roll(rack.context, "rack", HELD)
    first = shown(rack)["nodes"][0]
    assert (first["state"], first["problem"]["code"]) == ("waiting", "no_ram")
    assert "alpha cannot begin: " in shown(rack)["waiting_for"]
    play(rack)
    assert states(rack) == ["waiting", "drained", "waiting"]
    let_time_pass(rack)
    assert states(rack) == ["waiting", "drained", "waiting"], "one at once"
    for _ in range(2):
        let_holds_end(rack)
        let_time_pass(rack)
    assert (states(rack), shown(rack)["state"]) == (["waiting", "done", "done"], "running"), "and it is not left out"
    assert rack.kinds("roll.node_refused") == [""], "once, and not each time"
    rack.change(Node, facts={**SMALL, "ram_bytes": 16 * GIB, "ram_free_bytes": 16 * GIB})
    beat(rack)
    assert states(rack) == ["waiting", "done", "done"], "not at each beat: to ask means to place all its VMs"
    let_time_pass(rack)
    assert states(rack) == ["drained", "done", "done"]
    assert shown(rack)["nodes"][0]["problem"] is None


def test_who_was_refused_lets_those_go_first_who_were_not_asked_yet(rack: World) -> None:
    rack.change(Node, Node.name != "alpha", facts=SMALL)
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    rack.change(Node, facts={**SMALL, "ram_bytes": 16 * GIB, "ram_free_bytes": 16 * GIB})
    rack.change(RollNode, RollNode.asked_at.is_not(None), asked_at=now() - timedelta(seconds=31))
    let_holds_end(rack)
    assert states(rack) == ["waiting", "done", "drained"]
    let_holds_end(rack)
    assert states(rack) == ["drained", "done", "done"]


def test_who_was_refused_is_asked_again_at_once_by_a_resume(rack: World) -> None:
    rack.change(Node, Node.name != "alpha", facts=SMALL)
    groups.change_group(rack.context, "rack", GroupChange(remove=["beta", "gamma"]))
    rolls.begin_roll(rack.context, "rack", HELD)
    rack.change(Node, facts={**SMALL, "ram_bytes": 16 * GIB, "ram_free_bytes": 16 * GIB})
    beat(rack)
    assert states(rack) == ["waiting"]
    rolls.resume(rack.context, 1)
    assert states(rack) == ["draining"]


def test_event_tells_of_another_reason(rack: World) -> None:
    rack.change(Node, Node.name != "alpha", facts=SMALL)
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    for _ in range(2):
        let_holds_end(rack)
    evacuations.evacuate(rack.context, "gamma")
    let_time_pass(rack)
    assert shown(rack)["nodes"][0]["problem"]["code"] == "group_full"
    assert rack.kinds("roll.node_refused") == ["", ""]


def test_group_that_others_have_filled_is_waited_for_and_told(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", HELD)
    rolls.pause(rack.context, 1)
    play(rack)
    let_holds_end(rack)
    evacuations.evacuate(rack.context, "alpha")
    rolls.resume(rack.context, 1)
    document = shown(rack)
    assert [each["problem"] and each["problem"]["code"] for each in document["nodes"]] == [None, "group_full", None]
    assert (
        "beta cannot begin: of group rack 1 may be out at once, and 1 is: alpha (evacuation 2 is"
        in document["waiting_for"]
    )
    play(rack)
    evacuations.restore(rack.context, "alpha")
    play(rack)
    assert states(rack) == ["done", "drained", "waiting"], "at once, and not at its next time"


def test_other_group_of_a_node_is_asked_too(rack: World) -> None:
    groups.add_group(rack.context, "row", ["alpha", "delta"])
    rack.change(Node, Node.name == "delta", state="maintenance")
    rolls.begin_roll(rack.context, "rack", HELD)
    assert "delta (maintenance)" in shown(rack)["nodes"][0]["problem"]["message"]
    play(rack)
    assert states(rack) == ["waiting", "drained", "waiting"]


def test_node_that_somebody_else_empties_is_waited_for_as_it_is(rack: World) -> None:
    """He is at work there: it is not filled by itself."""
    evacuations.evacuate(rack.context, "alpha")
    play(rack)
    rolls.begin_roll(rack.context, "rack", HELD)
    assert states(rack) == ["drained", "waiting", "waiting"]
    assert (shown(rack)["nodes"][0]["evacuation"], show(rack)["restore_at"]) == (1, None)
    evacuations.restore(rack.context, "alpha")
    play(rack)
    assert states(rack) == ["done", "drained", "waiting"], "that was its turn"


def test_node_that_is_in_maintenance_already_has_its_turn_first(rack: World) -> None:
    rack.change(Node, Node.name == "beta", state="maintenance")
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    assert states(rack) == ["waiting", "drained", "waiting"]
    assert shown(rack)["waiting_for"].endswith("haulier restore beta"), "it took nothing before"


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_what_is_not_begun_by_the_deadline_is_left_out_with_its_reason(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", RollWishes(600.0, now() + timedelta(hours=1)))
    play(rack)
    assert show(rack)["deadline"] == (rack_deadline(rack) - timedelta(seconds=600)).isoformat()
    rack.change(Roll, deadline=now() + timedelta(seconds=300))
    beat(rack)
    document = shown(rack)
    assert (states(rack), document["state"]) == (["drained", "left_out", "left_out"], "running")
    assert [each["problem"]["code"] for each in document["nodes"][1:]] == ["deadline_over"] * 2
    let_holds_end(rack)
    assert (states(rack), shown(rack)["state"]) == (["done", "left_out", "left_out"], "done")
    assert rack.kinds("roll.") == ["begun", "node_begun", *["node_left_out"] * 2, "node_done", "done"]


def rack_deadline(world: World) -> Any:
    with world.context.database.read() as session:
        return session.get_one(Roll, 1).deadline


def test_node_that_would_not_fit_is_refused_and_says_so_at_the_end(rack: World) -> None:
    rack.change(Node, Node.name != "alpha", facts=SMALL)
    rolls.begin_roll(rack.context, "rack", RollWishes(600.0, now() + timedelta(hours=1)))
    rack.change(Roll, deadline=now())
    beat(rack)
    first = shown(rack)["nodes"][0]["problem"]
    assert (first["code"], "it needs 1.0 GiB" in first["message"]) == ("deadline_over", True)


def test_paused_roll_ends_too_when_its_time_is_over(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", RollWishes(600.0, now() + timedelta(hours=1)))
    play(rack)
    rolls.pause(rack.context, 1)
    let_holds_end(rack)
    assert states(rack) == ["done", "waiting", "waiting"]
    rack.change(Roll, deadline=now())
    beat(rack)
    assert shown(rack)["state"] == "done"


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_paused_it_begins_no_more_and_follows_what_is_out(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", HELD)
    assert rolls.pause(rack.context, 1)["waiting_for"] == "it is paused; haulier roll resume 1"
    play(rack)
    let_holds_end(rack)
    beat(rack)
    assert states(rack) == ["done", "waiting", "waiting"]
    assert rolls.resume(rack.context, 1)["state"] == "running"
    assert states(rack) == ["done", "drained", "waiting"]
    assert rack.kinds("roll.") == ["begun", "node_begun", "paused", "node_done", "resumed", "node_begun"]


def test_evacuation_that_is_cancelled_by_hand_pauses_it(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", HELD)
    evacuations.cancel(rack.context, 1, undo=True)
    play(rack)
    document = shown(rack)
    assert (document["state"], document["problem"]["code"]) == ("paused", "evacuation_cancelled")
    assert document["waiting_for"] == "it is paused: evacuation 1 of alpha was cancelled; haulier roll resume 1"
    first = document["nodes"][0]
    assert (first["state"], first["evacuation"], first["problem"]["code"]) == ("waiting", 1, "evacuation_cancelled")
    document = rolls.resume(rack.context, 1)
    assert (document["state"], document["problem"], document["nodes"][0]["evacuation"]) == ("running", None, 2)
    play(rack)
    assert states(rack) == ["drained", "waiting", "waiting"]


def test_evacuation_that_is_cancelled_after_the_deadline_pauses_nothing(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", RollWishes(600.0, now() + timedelta(hours=1)))
    rack.change(Roll, deadline=now())
    evacuations.cancel(rack.context, 1, undo=True)
    play(rack)
    document = shown(rack)
    assert (document["state"], states(rack)) == ("done", ["left_out"] * 3)
    assert "evacuation 1 of alpha was cancelled" in document["nodes"][0]["problem"]["message"]
    assert "paused" not in rack.kinds("roll.")


def test_cancelled_it_begins_no_more_and_what_is_out_goes_on(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", HELD)
    document = rolls.cancel(rack.context, 1)
    assert document["state"] == "cancelled"
    assert document["waiting_for"] == "nothing: it is over; evacuation 1 of alpha goes on by itself"
    play(rack)
    let_holds_end(rack)
    beat(rack)
    assert (show(rack)["state"], rack.count(Evacuation)) == ("restored", 1), "it was to be held, and filled by itself"
    assert (states(rack)[0], shown(rack)["waiting_for"]) == ("restored", "nothing: it is over"), "and so is this one"
    assert where(rack)["web"] == "alpha"
    assert rolls.begin_roll(rack.context, "rack", HELD)["id"] == 2
    assert [each["id"] for each in roll_view.list_rolls(rack.context)] == [2, 1]


def test_evacuation_of_a_cancelled_roll_that_is_cancelled_too_is_told_so(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", HELD)
    rolls.cancel(rack.context, 1)
    evacuations.cancel(rack.context, 1, undo=True)
    assert (states(rack)[0], shown(rack)["waiting_for"]) == ("cancelled", "nothing: it is over")


def test_what_is_over_and_not_written_down_yet_is_told_so(rack: World) -> None:
    """The roll may be looking for the places of another node's VMs for long."""
    rolls.begin_roll(rack.context, "rack", HELD)
    evacuations.cancel(rack.context, 1, undo=True)
    assert states(rack) == ["cancelled", "waiting", "waiting"]
    assert shown(rack)["waiting_for"] == "evacuation 1 of alpha is cancelled, which is written down next"


def test_node_that_was_taken_out_and_is_cancelled_pauses_nothing(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", HELD)
    groups.change_group(rack.context, "rack", GroupChange(remove=["alpha"]))
    evacuations.cancel(rack.context, 1, undo=True)
    beat(rack)
    play(rack)
    assert (shown(rack)["state"], states(rack)) == ("running", ["left_out", "drained", "waiting"])


def test_roll_outlives_its_group(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", HELD)
    rolls.cancel(rack.context, 1)
    groups.remove_group(rack.context, "rack")
    assert (shown(rack)["group"], shown(rack)["at_once"]) == ("rack", None)
    play(rack)
    assert states(rack)[0] == "drained"


def test_node_that_is_taken_out_of_the_group_has_no_turn(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack", HELD)
    play(rack)
    groups.change_group(rack.context, "rack", GroupChange(remove=["beta"], add=["delta"]))
    play(rack)
    assert states(rack) == ["drained", "left_out", "waiting"]
    assert shown(rack)["nodes"][1]["problem"]["code"] == "not_in_group"
    for _ in range(2):
        let_holds_end(rack)
    assert (states(rack), shown(rack)["state"]) == (["done", "left_out", "done"], "done"), "delta has none this time"
