"""A window empties its node when it begins and fills it when it ends, each time once, whoever dies; or says why not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete

from haulier.clock import now
from haulier.errors import Refused
from haulier.services import evacuations, groups, nodes, roll_view, rolls, windows
from haulier.services.evacuation_steps import go_on
from haulier.services.evacuation_wishes import Wishes
from haulier.services.lost_nodes import declare_lost
from haulier.services.vms import set_policy
from haulier.services.windows import Times
from models import Evacuation, EvacuationPolicy, EvacuationVm, MaintenanceWindow, Node, Roll, Vm
from tests.unit.services.hall import beat, play, show, state_of, where
from tests.unit.services.world import World, between

HOUR = 3600.0
EVERY_DAY = Times(2 * HOUR, cron="0 2 * * *")


def come(world: World, *, ago: float = 1.0) -> None:
    """The time of all windows has come, so many seconds ago."""
    world.change(MaintenanceWindow, next_at=now() - timedelta(seconds=ago))


def sweep(world: World) -> None:
    """Beat asks, and the control worker answers."""
    windows.ask_for_windows(world.context)
    if any(message.task == "haulier.windows" for message in world.sent):
        world.sent[:] = [message for message in world.sent if message.task != "haulier.windows"]
        windows.sweep_windows(world.context)


def the_window(world: World) -> dict[str, Any]:
    (found,) = windows.list_windows(world.context)
    return found


def test_node_is_emptied_when_its_window_begins(hall: World) -> None:
    windows.add_window(hall.context, "alpha", EVERY_DAY)
    sweep(hall)
    assert (hall.count(Evacuation), the_window(hall)["last"]) == (0, None), "not before its time"
    come(hall)
    sweep(hall)
    play(hall)
    assert show(hall)["state"] == "drained"
    assert hall.kinds("window.") == ["added", "begun"]
    assert the_window(hall)["last"] == "evacuation 1: drained"
    assert datetime.fromisoformat(the_window(hall)["next_at"]) > now()
    sweep(hall)
    assert (hall.count(Evacuation), state_of(hall, "alpha")) == (1, "drained"), "nobody asked to bring them back"


def test_whoever_dies_after_the_act_is_followed_by_one_who_gets_the_same(hall: World) -> None:
    windows.add_window(hall.context, "alpha", EVERY_DAY)
    come(hall)
    evacuations.evacuate(hall.context, "alpha")
    sweep(hall)
    assert hall.count(Evacuation) == 1
    assert the_window(hall)["problem"] is None


def test_what_would_not_fit_is_not_begun_and_says_so(hall: World) -> None:
    windows.add_window(hall.context, "alpha", Times(2 * HOUR, cron="0 2 * * *"))
    come(hall, ago=2 * HOUR - 1)
    sweep(hall)
    assert (hall.count(Evacuation), state_of(hall, "alpha")) == (0, "online")
    assert the_window(hall)["problem"]["code"] == "deadline_too_near"
    assert hall.kinds("window.") == ["added", "skipped"]


def test_window_that_nobody_saw_is_skipped(hall: World) -> None:
    """Beat was away for longer than it."""
    windows.add_window(hall.context, "alpha", EVERY_DAY)
    come(hall, ago=3 * HOUR)
    sweep(hall)
    assert the_window(hall)["problem"]["code"] == "deadline_over"
    assert datetime.fromisoformat(the_window(hall)["next_at"]) > now(), "and not begun for each day that was missed"


def test_all_come_back_at_its_end_if_asked_for(hall: World) -> None:
    windows.add_window(hall.context, "alpha", EVERY_DAY, restore=True)
    come(hall)
    sweep(hall)
    play(hall)
    sweep(hall)
    assert show(hall)["state"] == "drained", "not before its end"
    hall.change(Evacuation, restore_at=now() - timedelta(seconds=1))
    sweep(hall)
    play(hall)
    assert show(hall)["state"] == "restored"
    assert set(where(hall).values()) == {"alpha"}
    sweep(hall)
    assert show(hall)["state"] == "restored"


def test_what_is_at_work_at_its_end_finishes_and_comes_home(hall: World) -> None:
    windows.add_window(hall.context, "alpha", EVERY_DAY, restore=True)
    come(hall)
    sweep(hall)
    assert show(hall)["state"] == "running"
    hall.change(Evacuation, restore_at=now() - timedelta(seconds=1))
    sweep(hall)
    assert show(hall)["state"] == "restoring", "what has begun to leave is waited for"
    play(hall)
    assert show(hall)["state"] == "restored"
    assert set(where(hall).values()) == {"alpha"}
    assert state_of(hall, "alpha") == "online"


def test_window_that_comes_once_is_over_then(hall: World) -> None:
    windows.add_window(hall.context, "alpha", Times(HOUR, at=now() + timedelta(hours=1)))
    come(hall)
    sweep(hall)
    assert the_window(hall)["next_at"] is None
    assert windows.remove_window(hall.context, 1)["node"] == "alpha"
    assert windows.list_windows(hall.context) == []
    assert show(hall)["state"] == "running", "what it has begun goes on"


def test_node_whose_window_is_near_is_given_nothing(hall: World) -> None:
    for name in ("beta", "gamma"):
        windows.add_window(hall.context, name, Times(HOUR, at=now() + timedelta(minutes=30)))
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    assert set(where(hall).values()) == {"delta"}
    hall.change(Node, Node.name == "delta", state="maintenance")
    hall.change(Vm, node_id=1)
    (blocked, *_) = evacuations.plan_evacuation(hall.context, "alpha")["blocked"]
    assert (blocked["code"], "beta has a maintenance window at" in blocked["message"]) == ("window_soon", True)


@pytest.mark.parametrize(
    ("times", "code"),
    [
        (Times(HOUR), "bad_window"),
        (Times(HOUR, cron="0 2 * * *", at=datetime(2099, 1, 1, tzinfo=UTC)), "bad_window"),
        (Times(HOUR, at=datetime(2020, 1, 1, tzinfo=UTC)), "window_over"),
        (Times(0.0, cron="0 2 * * *"), "bad_window"),
        (Times(-1.0, cron="0 2 * * *"), "bad_window"),
        (Times(HOUR, cron="0 2 30 2 *"), "bad_cron"),
        (Times(HOUR, cron="0 2 * * *", zone="Mars"), "bad_zone"),
    ],
)
def test_what_is_no_window_is_refused(hall: World, times: Times, code: str) -> None:
    with pytest.raises(Refused) as refused:
        windows.add_window(hall.context, "alpha", times)
    assert refused.value.code == code
    assert hall.count(MaintenanceWindow) == 0


def test_unknown_nodes_and_windows_are_refused(hall: World) -> None:
    with pytest.raises(Refused) as refused:
        windows.add_window(hall.context, "omega", EVERY_DAY)
    assert refused.value.code == "unknown_node"
    with pytest.raises(Refused) as refused:
        windows.remove_window(hall.context, 7)
    assert refused.value.code == "unknown_window"


def test_its_end_fills_nothing_that_somebody_else_has_emptied(hall: World) -> None:
    """Its own evacuation was cancelled by hand, and another one begun."""
    windows.add_window(hall.context, "alpha", EVERY_DAY, restore=True)
    come(hall)
    sweep(hall)
    evacuations.cancel(hall.context, 1, undo=True)
    play(hall)
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    hall.change(Evacuation, Evacuation.id == 1, restore_at=now() - timedelta(seconds=1))
    sweep(hall)
    play(hall)
    assert (show(hall, 2)["state"], state_of(hall, "alpha")) == ("drained", "drained")


def test_what_is_cancelled_by_hand_is_not_brought_back_by_the_window(hall: World) -> None:
    windows.add_window(hall.context, "alpha", EVERY_DAY, restore=True)
    come(hall)
    sweep(hall)
    assert show(hall)["restore_at"] is not None
    assert evacuations.cancel(hall.context, 1, undo=False)["restore_at"] is None


def test_node_that_took_nothing_before_is_not_filled_by_itself(hall: World) -> None:
    windows.add_window(hall.context, "alpha", EVERY_DAY, restore=True)
    hall.change(Node, Node.name == "alpha", state="maintenance")
    come(hall)
    sweep(hall)
    assert show(hall)["restore_at"] is None


def test_window_that_begins_in_another_one_ends_with_the_later(hall: World) -> None:
    windows.add_window(hall.context, "alpha", Times(HOUR, cron="0 2 * * *"), restore=True)
    come(hall)
    sweep(hall)
    play(hall)
    first = datetime.fromisoformat(str(show(hall)["restore_at"]))
    windows.add_window(hall.context, "alpha", Times(5 * HOUR, cron="0 3 * * *"), restore=True)
    come(hall)
    sweep(hall)
    assert datetime.fromisoformat(str(show(hall)["restore_at"])) > first + timedelta(hours=3)


def test_window_that_is_broken_holds_no_other(hall: World) -> None:
    """A time zone that the control worker's host does not know."""
    windows.add_window(hall.context, "alpha", EVERY_DAY)
    windows.add_window(hall.context, "beta", EVERY_DAY)
    hall.change(MaintenanceWindow, MaintenanceWindow.id == 1, zone="Middle/Earth")
    come(hall)
    sweep(hall)
    assert hall.count(Evacuation) == 2
    assert datetime.fromisoformat(str(windows.list_windows(hall.context)[1]["next_at"])) > now()


def test_node_that_is_lost_at_its_end_is_filled_by_nobody_but_a_person(hall: World) -> None:
    """When it is back somebody is to look at it first."""
    windows.add_window(hall.context, "alpha", EVERY_DAY, restore=True)
    come(hall)
    sweep(hall)
    play(hall)
    hall.silence("alpha")
    declare_lost(hall.context, "alpha", is_off=True)
    hall.change(Evacuation, restore_at=now() - timedelta(seconds=1))
    sweep(hall)
    nodes.beat(hall.context, 1)
    for _ in range(2):
        sweep(hall)
        beat(hall)
        play(hall)
    assert (state_of(hall, "alpha") != "online", show(hall)["state"]) == (True, "drained")
    evacuations.restore(hall.context, "alpha")
    play(hall)
    assert (show(hall)["state"], set(where(hall).values())) == ("restored", {"alpha"})


def test_end_that_is_broken_holds_no_other(hall: World) -> None:
    """A VM of it whose row was spoilt."""
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    evacuations.evacuate(hall.context, "beta")
    play(hall)
    (gone,) = (name for name, node in where(hall).items() if node == "gamma")
    with hall.context.database.write() as session:
        session.execute(delete(EvacuationVm).where(EvacuationVm.evacuation_id == 2))
    hall.change(Vm, Vm.name == gone, definition={"x": 1})
    hall.change(Evacuation, restore_at=now() - timedelta(seconds=1))
    sweep(hall)
    assert [show(hall, number)["state"] for number in (1, 2)] == ["restoring", "restored"]


# -- of a group --------------------------------------------------------------------------------------------------------

EVERY_NIGHT = Times(6 * HOUR, cron="0 2 * * *", hold_s=1200.0)


@pytest.fixture
def rack(hall: World) -> World:
    """Alpha, where `web` is, and beta are a group, and each night it is rolled through."""
    hall.change(Vm, Vm.name != "web", node_id=4)
    groups.add_group(hall.context, "rack", ["alpha", "beta"])
    windows.add_window(hall.context, None, EVERY_NIGHT, group="rack")
    return hall


def let_holds_end(world: World) -> None:
    world.change(Evacuation, Evacuation.state == "drained", restore_at=now() - timedelta(seconds=1))
    sweep(world)
    play(world)


def states(world: World, number: int = 1) -> list[str]:
    return [each["state"] for each in roll_view.show_roll(world.context, number)["nodes"]]


def test_group_is_rolled_through_when_its_window_begins(rack: World) -> None:
    assert (the_window(rack)["node"], the_window(rack)["group"], the_window(rack)["hold_s"]) == (None, "rack", 1200.0)
    sweep(rack)
    assert rack.count(Roll) == 0, "not before its time"
    come(rack)
    begun_at = datetime.fromisoformat(the_window(rack)["next_at"] or "")
    sweep(rack)
    play(rack)
    roll = roll_view.show_roll(rack.context, 1)
    assert (roll["state"], roll["window"], states(rack)) == ("running", 1, ["drained", "waiting"])
    assert the_window(rack)["last"] == "roll 1: running"
    end = begun_at + timedelta(hours=6)
    assert (roll["deadline"], roll["restore_at"]) == (end.isoformat(), None)
    assert show(rack)["deadline"] == (end - timedelta(seconds=1200)).isoformat(), "it is to stay empty before the end"
    assert (the_window(rack)["problem"], rack.kinds("window.")) == (None, ["added", "begun"])
    for _ in range(2):
        let_holds_end(rack)
    assert (states(rack), where(rack)["web"]) == (["done", "done"], "alpha")
    sweep(rack)
    assert rack.count(Roll) == 1


def test_what_does_not_fit_in_a_window_of_a_group_is_left_out(rack: World) -> None:
    rack.change(Vm, Vm.name == "web", pinned={"ram_kib": 12 << 20})
    come(rack, ago=6 * HOUR - 1220.0)
    sweep(rack)
    beat(rack)
    first, second = roll_view.show_roll(rack.context, 1)["nodes"]
    assert (first["state"], first["problem"]["code"]) == ("waiting", "deadline_too_near")
    assert second["state"] == "drained", "beta is empty"
    rack.change(Roll, deadline=now())
    beat(rack)
    assert states(rack) == ["left_out", "drained"]


@pytest.mark.parametrize(("ago", "code"), [(7 * HOUR, "deadline_over"), (6 * HOUR - 600.0, "deadline_too_near")])
def test_window_of_a_group_that_is_over_or_too_short_is_skipped(rack: World, ago: float, code: str) -> None:
    come(rack, ago=ago)
    sweep(rack)
    assert (rack.count(Roll), the_window(rack)["problem"]["code"]) == (0, code)
    assert rack.kinds("window.") == ["added", "skipped"]


def test_whoever_dies_after_the_roll_was_begun_is_followed_by_one_who_gets_the_same(rack: World) -> None:
    come(rack)
    next_at = datetime.fromisoformat(the_window(rack)["next_at"] or "")
    sweep(rack)
    rolls.cancel(rack.context, 1)
    rack.change(MaintenanceWindow, next_at=next_at)
    sweep(rack)
    assert (rack.count(Roll), the_window(rack)["problem"]) == (1, None), "also where it is over already"


def test_window_that_comes_while_another_roll_is_open_is_skipped_and_says_so(rack: World) -> None:
    rolls.begin_roll(rack.context, "rack")
    rolls.pause(rack.context, 1)
    come(rack)
    sweep(rack)
    assert (rack.count(Roll), the_window(rack)["problem"]["code"]) == (1, "roll_open")


def test_what_is_empty_still_at_the_end_of_a_window_of_a_group_is_filled_then(rack: World) -> None:
    windows.remove_window(rack.context, 1)
    long = Times(6 * HOUR, cron="0 2 * * *", hold_s=5 * HOUR)
    windows.add_window(rack.context, None, long, group="rack", restore=True)
    come(rack, ago=1800.0)
    sweep(rack)
    end = show(rack)["restore_at"]
    play(rack)
    assert show(rack)["restore_at"] < end, "the hold is over before"
    rack.change(Evacuation, hold_s=6 * HOUR, restore_at=datetime.fromisoformat(end), state="running")
    beat(rack)
    assert show(rack)["restore_at"] == end, "it is not held past the end"


def test_what_is_at_work_at_the_end_of_a_window_of_a_group_comes_home_and_pauses_nothing(rack: World) -> None:
    windows.remove_window(rack.context, 1)
    windows.add_window(rack.context, None, EVERY_NIGHT, group="rack", restore=True)
    come(rack)
    sweep(rack)
    rack.change(Evacuation, restore_at=now() - timedelta(seconds=1))
    evacuations.cancel(rack.context, 1, undo=False, to_restore=True)
    beat(rack)
    assert (roll_view.show_roll(rack.context, 1)["state"], states(rack)) == ("running", ["restoring", "waiting"])
    rack.change(Roll, deadline=now())
    sweep(rack)
    play(rack)
    beat(rack)
    assert (show(rack)["state"], where(rack)["web"]) == ("restored", "alpha")
    assert (roll_view.show_roll(rack.context, 1)["state"], states(rack)) == ("done", ["left_out", "left_out"])


@pytest.mark.parametrize("of_group", [False, True])
@pytest.mark.parametrize("restore", [False, True])
def test_end_of_a_window_is_not_lost_when_a_held_node_is_asked_for_again(
    rack: World, of_group: bool, restore: bool
) -> None:
    """Somebody has started a VM there: its hold begins anew, and does not go past the end."""
    windows.remove_window(rack.context, 1)
    long = Times(6 * HOUR, cron="0 2 * * *", hold_s=5 * HOUR)
    one = {"node": None, "group": "rack"} if of_group else {"node": "alpha", "group": None}
    windows.add_window(rack.context, times=long, restore=restore, **one)
    come(rack)
    sweep(rack)
    end = show(rack)["restore_at"]
    play(rack)
    held = show(rack)["restore_at"]
    assert (end is not None, held is not None) == (restore, True)
    rack.change(Vm, Vm.name == "web", node_id=1, evacuation=EvacuationPolicy.STAY)
    evacuations.evacuate(rack.context, "alpha")
    beat(rack)
    assert (show(rack)["state"], show(rack)["restore_at"]) == ("blocked", end), "it is not held yet"
    rack.change(Vm, Vm.name == "web", node_id=2)
    rack.change(Evacuation, hold_s=7 * HOUR)
    beat(rack, blocked_too=True)
    assert show(rack)["state"] == "drained"
    assert show(rack)["restore_at"] == end if restore else show(rack)["restore_at"] > held


def test_window_of_a_group_closes_none_of_its_nodes(rack: World) -> None:
    """It empties one at a time, and the others are where its VMs go."""
    rack.change(Node, Node.name.in_(("gamma", "delta")), state="maintenance")
    come(rack, ago=-60.0)
    evacuations.evacuate(rack.context, "alpha")
    play(rack)
    assert where(rack)["web"] == "beta"


def test_node_of_a_window_is_held_too_and_filled_before_its_end(hall: World) -> None:
    windows.add_window(hall.context, "alpha", EVERY_NIGHT, restore=True)
    come(hall)
    sweep(hall)
    play(hall)
    document = show(hall)
    assert (document["state"], document["hold_s"]) == ("drained", 1200.0)
    lasts = datetime.fromisoformat(document["deadline"]) - now()
    assert timedelta(0) < timedelta(hours=6, seconds=-1200) - lasts < timedelta(minutes=1), "and to be held in it"
    assert datetime.fromisoformat(document["restore_at"]) < now() + timedelta(seconds=1300)


@pytest.mark.parametrize(
    ("node", "group", "hold_s", "code"),
    [
        (None, None, None, "bad_window"),
        ("alpha", "rack", None, "bad_window"),
        ("alpha", None, 2 * HOUR, "bad_window"),
        (None, "rack", 2 * HOUR, "bad_window"),
        (None, "rack", -1.0, "bad_hold"),
    ],
)
def test_window_is_of_a_node_or_of_a_group_and_longer_than_its_hold(
    rack: World, node: str | None, group: str | None, hold_s: float | None, code: str
) -> None:
    times = Times(2 * HOUR, cron="0 2 * * *", hold_s=hold_s)
    with pytest.raises(Refused) as refused:
        windows.add_window(rack.context, node, times, group=group)
    assert (refused.value.code, rack.count(MaintenanceWindow)) == (code, 1)


def test_window_of_a_group_is_removed_and_its_roll_goes_on(rack: World) -> None:
    come(rack)
    sweep(rack)
    assert windows.remove_window(rack.context, 1)["group"] == "rack"
    play(rack)
    assert states(rack) == ["drained", "waiting"]


def test_one_that_moves_again_at_its_end_is_filled_by_the_next_look(hall: World) -> None:
    """It was blocked when all that are over were read: what kept it there may leave now."""
    set_policy(hall.context, "web", EvacuationPolicy.STAY)
    end = now() + timedelta(hours=2)
    evacuations.evacuate(hall.context, "alpha", Wishes(restore_at=end, window=True))
    play(hall)
    assert show(hall)["state"] == "blocked"
    hall.change(Evacuation, restore_at=now())

    def let_it_leave() -> None:
        set_policy(hall.context, "web", EvacuationPolicy.LIVE)
        go_on(hall.context, 1)

    with between(hall, "BEGIN IMMEDIATE", let_it_leave):
        windows.sweep_windows(hall.context)
    assert show(hall)["restore_at"] is not None
    play(hall)
    sweep(hall)
    play(hall)
    assert (show(hall)["state"], set(where(hall).values())) == ("restored", {"alpha"})
