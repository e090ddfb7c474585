"""A window empties its node when it begins and fills it when it ends, each time once, whoever dies; or says why not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from haulier.clock import now
from haulier.errors import Refused
from haulier.services import evacuations, windows
from haulier.services.windows import Times
from models import Evacuation, MaintenanceWindow, Node, Vm
from tests.unit.services.hall import play, show, state_of, where
from tests.unit.services.world import World

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
    assert hall.count(Evacuation) == 0, "not before its time"
    come(hall)
    sweep(hall)
    play(hall)
    assert show(hall)["state"] == "drained"
    assert hall.kinds("window.") == ["added", "begun"]
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
