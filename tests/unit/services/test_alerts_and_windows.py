"""A window, a hold, a person and alerts want the same node: whose it is next."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from haulier.clock import now
from haulier.services import evacuations, windows
from haulier.services.alert_actions import act, act_on_all, ask_for_alerts
from haulier.services.alert_rules import Answer, add_rule
from haulier.services.alerts import receive
from haulier.services.evacuation_wishes import Wishes
from haulier.services.nodes import NodeChange, change_node
from models import Evacuation, MaintenanceWindow
from tests.unit.services.alarms import (
    CORDON_IT,
    EMPTY_IT,
    FIRED,
    OTHER,
    OVER,
    asked,
    newest,
    work,
)
from tests.unit.services.hall import show, state_of
from tests.unit.services.world import World


def begin_window(hall: World, *, restore: bool = True) -> None:
    windows.add_window(hall.context, "alpha", windows.Times(7200.0, at=now() + timedelta(hours=1)), restore=restore)
    hall.change(MaintenanceWindow, next_at=now())
    windows.sweep_windows(hall.context)
    work(hall)


def end_window(hall: World) -> None:
    assert show(hall)["restore_at"] is not None
    hall.change(Evacuation, restore_at=now() - timedelta(seconds=1))
    windows.ask_for_windows(hall.context)
    work(hall)


def fire_within_a_window(hall: World, answer: Answer) -> None:
    add_rule(hall.context, "DiskFails", answer)
    begin_window(hall)
    receive(hall.context, [FIRED])
    work(hall)


def test_end_of_a_window_fills_no_node_while_an_alert_fires(hall: World) -> None:
    fire_within_a_window(hall, EMPTY_IT)
    end_window(hall)
    assert (show(hall)["state"], show(hall)["cause"], show(hall)["restore_at"]) == ("drained", "alert 1", None)
    assert hall.kinds("evacuation.")[-1] == "kept"
    receive(hall.context, [OVER])
    work(hall)
    assert show(hall)["state"] == "restored"


def test_end_of_a_window_opens_no_node_that_an_alert_wants_closed(hall: World) -> None:
    fire_within_a_window(hall, CORDON_IT)
    end_window(hall)
    assert (show(hall)["state"], state_of(hall, "alpha")) == ("drained", "drained")
    assert "back when alert 1 is over, which wants alpha closed; haulier restore alpha" in show(hall)["waiting_for"]
    receive(hall.context, [OVER])
    windows.sweep_windows(hall.context)
    work(hall)
    assert (show(hall)["state"], state_of(hall, "alpha")) == ("restored", "online")


def close_again(hall: World) -> None:
    """Beat looks, every half minute."""
    ask_for_alerts(hall.context, held_too=True)
    work(hall)


AGES = replace(OTHER, alertname="DiskAges")
AGES_OVER = replace(AGES, is_resolved=True)


@pytest.mark.parametrize("opened_by", ["cancel", "end"])
def test_node_that_was_opened_while_an_alert_wants_it_closed_is_closed_again(hall: World, opened_by: str) -> None:
    """It was closed already when that fired, and nobody has overruled it since."""
    add_rule(hall.context, "DiskAges", CORDON_IT)
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    if opened_by == "cancel":
        receive(hall.context, [AGES])
        work(hall)
        evacuations.cancel(hall.context, 1, undo=False)
    else:
        receive(hall.context, [OVER])
        # Between the look of who ends it and its act.
        receive(hall.context, [AGES])
        act_on_all(hall.context, held_too=False)
        evacuations.restore(hall.context, "alpha", only=1)
    assert (state_of(hall, "alpha"), newest(hall)["state"]) == ("online", "done")
    close_again(hall)
    assert (state_of(hall, "alpha"), newest(hall)["state"]) == ("maintenance", "done")
    hall.sent.clear()
    ask_for_alerts(hall.context, held_too=True)
    assert asked(hall) == []
    receive(hall.context, [AGES_OVER])
    work(hall)
    assert state_of(hall, "alpha") == "online"


def test_end_that_somebody_died_in_opens_no_node_that_an_alert_wants_closed(hall: World) -> None:
    """It was given up to be filled, and not filled."""
    add_rule(hall.context, "DiskFails", CORDON_IT)
    begin_window(hall)
    hall.change(Evacuation, restore_at=now() - timedelta(seconds=1))
    evacuations.cancel(hall.context, 1, undo=False, to_restore=True)
    receive(hall.context, [FIRED])
    act_on_all(hall.context, held_too=False)
    windows.sweep_windows(hall.context)
    assert (show(hall)["state"], state_of(hall, "alpha")) == ("cancelled", "maintenance")
    receive(hall.context, [OVER])
    windows.sweep_windows(hall.context)
    work(hall)
    assert (show(hall)["state"], state_of(hall, "alpha")) == ("restored", "online")


@pytest.mark.parametrize("act_of_a_person", ["maintenance", "restore"])
def test_node_that_a_person_has_opened_is_not_closed_again(hall: World, act_of_a_person: str) -> None:
    add_rule(hall.context, "DiskFails", CORDON_IT)
    if act_of_a_person == "restore":
        evacuations.evacuate(hall.context, "alpha")
    receive(hall.context, [FIRED])
    work(hall)
    if act_of_a_person == "restore":
        evacuations.restore(hall.context, "alpha")
    else:
        change_node(hall.context, "alpha", NodeChange(maintenance=False))
    close_again(hall)
    assert (state_of(hall, "alpha"), newest(hall)["state"]) == ("online", "overruled")


def test_person_fills_a_node_that_an_alert_wants_closed(hall: World) -> None:
    fire_within_a_window(hall, CORDON_IT)
    end_window(hall)
    evacuations.restore(hall.context, "alpha")
    work(hall)
    assert (show(hall)["state"], newest(hall)["state"]) == ("restored", "overruled")


def test_alert_that_is_over_within_a_window_leaves_the_node_to_it(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    begin_window(hall)
    assert show(hall)["cause"] == "window 1"
    receive(hall.context, [OVER])
    work(hall)
    assert show(hall)["state"] == "drained"
    end_window(hall)
    assert show(hall)["state"] == "restored"


def test_window_that_ends_before_the_alert_leaves_the_node_to_it(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    begin_window(hall)
    end_window(hall)
    assert (show(hall)["state"], show(hall)["cause"]) == ("drained", "alert 1")
    receive(hall.context, [OVER])
    work(hall)
    assert show(hall)["state"] == "restored"


@pytest.mark.parametrize("to_come", ["cancel", "restore"])
def test_alert_that_comes_while_a_window_is_ended(hall: World, monkeypatch: pytest.MonkeyPatch, to_come: str) -> None:
    """Whoever ends it has seen that nobody wants the node empty; then somebody does."""
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    begin_window(hall)
    if to_come == "cancel":
        hall.change(Evacuation, state="running")
    done = getattr(evacuations, to_come)

    def late(*args: Any, **words: Any) -> Any:
        monkeypatch.setattr(evacuations, to_come, done)
        receive(hall.context, [FIRED])
        act(hall.context, 1)
        return done(*args, **words)

    monkeypatch.setattr(evacuations, to_come, late)
    end_window(hall)
    assert (show(hall)["cause"], show(hall)["state"], newest(hall)["state"]) == ("alert 1", "drained", "done")


def test_who_takes_a_node_over_holds_it_as_long_as_he_wishes(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    evacuations.evacuate(hall.context, "alpha", Wishes(hold_s=600.0, cause="roll 1"))
    receive(hall.context, [OVER])
    work(hall)
    assert (show(hall)["state"], show(hall)["cause"]) == ("drained", "roll 1")
    end_window(hall)
    assert show(hall)["state"] == "restored"
