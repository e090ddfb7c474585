"""An alert is acted on once, by its rule, whoever dies and however often it comes; and taken back if asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from haulier.errors import Refused
from haulier.services import evacuations, windows
from haulier.services.alert_actions import act, ask_for_alerts
from haulier.services.alert_rules import Answer, add_rule, list_rules, remove_rule
from haulier.services.alerts import Fired, forget, list_alerts, receive, rehearse
from haulier.services.nodes import NodeChange, change_node, register_node
from models import Alert, AlertAction, AlertRule, Evacuation, Node
from tests.unit.services.alarms import (
    BEGUN,
    CORDON_IT,
    EMPTY_IT,
    FIRED,
    OTHER,
    OTHER_OVER,
    OVER,
    asked,
    newest,
    outcome,
    work,
)
from tests.unit.services.hall import show, state_of, where
from tests.unit.services.world import World


def test_node_of_an_alert_is_emptied_once(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    assert outcome(hall, FIRED) == ["waiting"]
    assert hall.count(Evacuation) == 0, "the control worker does that"
    work(hall)
    assert (show(hall)["state"], show(hall)["cause"]) == ("drained", "alert 1")
    assert outcome(hall, FIRED, FIRED) == ["done", "done"]
    work(hall)
    assert (hall.count(Alert), hall.count(Evacuation), newest(hall)["received"]) == (1, 1, 3)
    assert hall.kinds("alert.") == ["received", "done"]


def test_all_comes_back_when_it_is_over(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    assert outcome(hall, OVER) == ["resolved"]
    work(hall)
    assert (show(hall)["state"], state_of(hall, "alpha")) == ("restored", "online")
    assert set(where(hall).values()) == {"alpha"}
    assert outcome(hall, OVER) == ["resolved"]


def test_nothing_comes_back_that_was_not_asked_for(hall: World) -> None:
    add_rule(hall.context, "DiskFails", Answer(AlertAction.EVACUATE))
    receive(hall.context, [FIRED])
    work(hall)
    receive(hall.context, [OVER])
    work(hall)
    assert show(hall)["state"] == "drained"


def test_what_a_person_has_emptied_stays_empty(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    evacuations.evacuate(hall.context, "alpha")
    receive(hall.context, [FIRED])
    work(hall)
    assert newest(hall)["evacuation"] == 1
    receive(hall.context, [OVER])
    work(hall)
    assert show(hall)["state"] == "drained"


def test_last_of_several_alerts_brings_all_back(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    receive(hall.context, [OTHER])
    work(hall)
    receive(hall.context, [OVER])
    work(hall)
    assert show(hall)["state"] == "drained", "another one fires still"
    receive(hall.context, [OTHER_OVER])
    work(hall)
    assert show(hall)["state"] == "restored"


def test_the_same_alert_that_fires_anew_is_another_one(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    receive(hall.context, [OVER])
    work(hall)
    receive(hall.context, [replace(FIRED, starts_at=BEGUN + timedelta(hours=1))])
    work(hall)
    assert (hall.count(Alert), show(hall, 2)["state"]) == (2, "drained")


def test_what_is_cancelled_by_hand_is_not_begun_again_by_the_same_alert(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    evacuations.cancel(hall.context, 1, undo=False)
    receive(hall.context, [FIRED])
    ask_for_alerts(hall.context, held_too=True)
    work(hall)
    assert (hall.count(Evacuation), show(hall)["state"]) == (1, "cancelled")


def test_what_is_refused_now_is_asked_again_while_it_fires(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    hall.change(Node, Node.name != "alpha", state="maintenance")
    receive(hall.context, [FIRED])
    work(hall)
    assert (newest(hall)["state"], newest(hall)["problem"]["code"]) == ("waiting", "node_in_maintenance")
    ask_for_alerts(hall.context, held_too=False)
    assert not any(message.task == "haulier.alerts" for message in hall.sent), "not at each beat"
    ask_for_alerts(hall.context, held_too=True)
    work(hall)
    assert hall.kinds("alert.") == ["received", "held"], "told once"
    hall.change(Node, Node.name != "alpha", state="online")
    ask_for_alerts(hall.context, held_too=True)
    work(hall)
    assert (newest(hall)["state"], show(hall)["state"]) == ("done", "drained")


def test_what_is_over_before_it_could_be_done_is_not_done(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED, OVER])
    work(hall)
    assert (newest(hall)["state"], hall.count(Evacuation)) == ("resolved", 0)


def test_whoever_dies_after_the_act_has_said_so(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing lies between: the alert is done in the transaction in which its evacuation begins."""
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])

    def die(*_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(evacuations, "go_on", die)
        with pytest.raises(SystemExit):
            act(hall.context, 1)
    assert (newest(hall)["state"], newest(hall)["evacuation"]) == ("done", 1)
    receive(hall.context, [OVER])
    work(hall)
    assert (show(hall)["state"], state_of(hall, "alpha")) == ("cancelled", "online"), "nothing had left"


def slow(hall: World, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], Any]) -> None:
    """What happens between the plan for an alert's node and its begin."""
    file = evacuations._file

    def later(*args: Any) -> Any:
        monkeypatch.setattr(evacuations, "_file", file)
        meanwhile()
        return file(*args)

    monkeypatch.setattr(evacuations, "_file", later)


def test_what_is_over_while_its_node_is_planned_is_not_begun(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    slow(hall, monkeypatch, lambda: receive(hall.context, [OVER]))
    work(hall)
    assert (hall.count(Evacuation), newest(hall)["state"], newest(hall)["problem"]) == (0, "resolved", None)


def test_what_a_person_cancels_is_not_begun_by_one_that_was_late(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two act on the same alert, and a person has cancelled what the first began."""
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])

    def first() -> None:
        act(hall.context, 1)
        evacuations.cancel(hall.context, 1, undo=False)

    slow(hall, monkeypatch, first)
    act(hall.context, 1)
    assert (hall.count(Evacuation), show(hall)["state"], newest(hall)["state"]) == (1, "cancelled", "done")


def test_cordon_closes_a_node_and_opens_it_again(hall: World) -> None:
    add_rule(hall.context, "DiskFails", CORDON_IT)
    receive(hall.context, [FIRED])
    work(hall)
    assert (state_of(hall, "alpha"), set(where(hall).values())) == ("maintenance", {"alpha"})
    receive(hall.context, [OVER])
    work(hall)
    assert state_of(hall, "alpha") == "online"


def test_node_that_a_person_has_closed_stays_closed(hall: World) -> None:
    add_rule(hall.context, "DiskFails", CORDON_IT)
    receive(hall.context, [FIRED])
    work(hall)
    receive(hall.context, [OVER])
    change_node(hall.context, "alpha", NodeChange(maintenance=True))
    receive(hall.context, [OTHER])
    work(hall)
    receive(hall.context, [OTHER_OVER])
    work(hall)
    assert state_of(hall, "alpha") == "maintenance"


def test_dry_run_of_a_rule_is_written_down_and_not_done(hall: World) -> None:
    add_rule(hall.context, "DiskFails", replace(EMPTY_IT, dry_run=True))
    assert outcome(hall, FIRED, FIRED) == ["dry_run", "dry_run"]
    work(hall)
    assert (hall.count(Evacuation), hall.kinds("alert.")) == (0, ["dry_run"])
    assert outcome(hall, OVER) == ["resolved"]
    work(hall)
    assert state_of(hall, "alpha") == "online"


def test_rehearsal_shows_the_plan_and_touches_nothing(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    found = rehearse(hall.context, [FIRED, replace(FIRED, alertname="Other")])
    assert [each["outcome"] for each in found] == ["dry_run", "ignored"]
    assert {move["vm"] for move in found[0]["plan"]["plan"]} == {"web", "db", "mail"}
    assert (hall.count(Alert), hall.kinds("alert."), hall.sent) == (0, [], [])


@pytest.mark.parametrize(
    ("labels", "code"),
    [({"instance": "omega:9100"}, "unknown_node"), ({"node": "alpha"}, "no_label"), ({"instance": ""}, "unknown_node")],
)
def test_alert_about_no_node_is_said_once(hall: World, labels: dict[str, str], code: str) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    assert outcome(hall, replace(FIRED, labels=labels), replace(FIRED, labels=labels)) == ["refused", "refused"]
    assert (newest(hall)["problem"]["code"], hall.kinds("alert.")) == (code, ["refused"])


def test_alert_without_a_rule_is_ignored(hall: World) -> None:
    assert outcome(hall, FIRED, OVER) == ["ignored", "ignored"]
    assert hall.count(Alert) == 0


def test_rules_of_alerts(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    for alertname, code in (("DiskFails", "alert_rule_exists"), ("", "bad_alert_rule")):
        with pytest.raises(Refused) as refused:
            add_rule(hall.context, alertname, CORDON_IT)
        assert refused.value.code == code
    with pytest.raises(Refused) as refused:
        remove_rule(hall.context, "DiskFail")
    assert refused.value.code == "unknown_alert_rule"
    assert [each["action"] for each in list_rules(hall.context)] == ["evacuate"]
    remove_rule(hall.context, "DiskFails")
    assert hall.count(AlertRule) == 0


def test_node_that_took_nothing_before_is_not_filled(hall: World) -> None:
    hall.change(Node, Node.name == "alpha", state="maintenance")
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    receive(hall.context, [OVER])
    work(hall)
    assert (show(hall)["state"], show(hall)["restore_at"]) == ("drained", None)


# -- several alerts, and persons ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivery", [[OTHER, OVER], [OVER, OTHER]])
@pytest.mark.parametrize("windows_first", [True, False])
def test_one_that_waits_keeps_what_another_one_did(hall: World, delivery: list[Fired], windows_first: bool) -> None:
    """One delivery: one begins, and the other is over."""
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    receive(hall.context, delivery)
    if windows_first:
        windows.sweep_windows(hall.context)
    work(hall)
    assert [row["state"] for row in list_alerts(hall.context)] == ["done", "resolved"]
    assert (show(hall)["state"], show(hall)["cause"], show(hall)["restore_at"]) == ("drained", "alert 2", None)
    receive(hall.context, [OTHER_OVER])
    work(hall)
    assert (show(hall)["state"], hall.count(Evacuation)) == ("restored", 1)


def test_heir_that_is_over_before_it_acted_takes_back_too(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    receive(hall.context, [OTHER, OVER, OTHER_OVER])
    work(hall)
    assert (show(hall)["state"], state_of(hall, "alpha")) == ("restored", "online")


def test_alert_whose_begin_moves_is_the_same(hall: World) -> None:
    """Alertmanager takes the earliest of what several Prometheis say."""
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    earlier = BEGUN - timedelta(seconds=7)
    assert outcome(hall, replace(FIRED, starts_at=earlier), replace(OVER, starts_at=earlier)) == ["done", "resolved"]
    work(hall)
    assert (hall.count(Alert), show(hall)["state"]) == (1, "restored")


def test_what_a_person_wishes_too_is_not_taken_back(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    assert evacuations.evacuate(hall.context, "alpha")["again"]
    receive(hall.context, [OVER])
    work(hall)
    assert (show(hall)["state"], show(hall)["cause"]) == ("drained", None)


def test_what_a_person_wishes_when_it_is_just_to_be_taken_back_stays(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    receive(hall.context, [OVER])
    evacuations.evacuate(hall.context, "alpha")
    work(hall)
    assert (show(hall)["state"], show(hall)["restore_at"]) == ("drained", None)


@pytest.mark.parametrize("act_of_a_person", ["maintenance", "restore"])
def test_node_that_a_person_has_opened_is_no_alerts_any_more(hall: World, act_of_a_person: str) -> None:
    add_rule(hall.context, "DiskFails", CORDON_IT)
    receive(hall.context, [FIRED])
    work(hall)
    if act_of_a_person == "restore":
        evacuations.evacuate(hall.context, "alpha")
        work(hall)
        evacuations.restore(hall.context, "alpha")
        work(hall)
    else:
        change_node(hall.context, "alpha", NodeChange(maintenance=False))
    assert (state_of(hall, "alpha"), outcome(hall, FIRED)) == ("online", ["overruled"])
    change_node(hall.context, "alpha", NodeChange(maintenance=True))
    receive(hall.context, [OVER])
    work(hall)
    assert (state_of(hall, "alpha"), newest(hall)["state"]) == ("maintenance", "resolved")


def test_alert_whose_end_never_came_is_no_heir_for_ever(hall: World) -> None:
    add_rule(hall.context, "DiskFails", CORDON_IT)
    receive(hall.context, [FIRED])
    work(hall)
    change_node(hall.context, "alpha", NodeChange(maintenance=False))
    receive(hall.context, [OTHER])
    work(hall)
    assert state_of(hall, "alpha") == "maintenance"
    receive(hall.context, [OTHER_OVER])
    work(hall)
    assert state_of(hall, "alpha") == "online"


@pytest.mark.parametrize("answer", [EMPTY_IT, CORDON_IT])
def test_alert_is_forgotten(hall: World, answer: Answer) -> None:
    add_rule(hall.context, "DiskFails", answer)
    receive(hall.context, [FIRED])
    work(hall)
    assert forget(hall.context, 1)["state"] == "resolved"
    work(hall)
    assert (state_of(hall, "alpha"), set(where(hall).values())) == ("online", {"alpha"})
    assert forget(hall.context, 1)["state"] == "resolved"
    with pytest.raises(Refused) as refused:
        forget(hall.context, 7)
    assert refused.value.code == "unknown_alert"


def test_node_that_was_lost_meanwhile_stays_closed(hall: World) -> None:
    """Somebody is to look at it first."""
    add_rule(hall.context, "DiskFails", CORDON_IT)
    receive(hall.context, [FIRED])
    work(hall)
    hall.change(Node, Node.name == "alpha", state="lost")
    register_node(hall.context, "alpha", facts={}, images=Path("/alpha/images"))
    receive(hall.context, [OVER])
    work(hall)
    assert state_of(hall, "alpha") == "maintenance"


def test_node_that_an_alert_had_closed_is_open_when_its_evacuation_is_cancelled(hall: World) -> None:
    add_rule(hall.context, "DiskFails", CORDON_IT)
    receive(hall.context, [FIRED])
    work(hall)
    evacuations.evacuate(hall.context, "alpha")
    work(hall)
    receive(hall.context, [OVER])
    work(hall)
    assert state_of(hall, "alpha") == "drained"
    evacuations.cancel(hall.context, 1, undo=False)
    assert state_of(hall, "alpha") == "online"


@pytest.mark.parametrize("first_over", ["evacuate", "cordon"])
def test_node_that_one_alert_closes_and_another_one_empties_is_filled_by_the_last_of_them(
    hall: World, first_over: str
) -> None:
    add_rule(hall.context, "DiskAges", CORDON_IT)
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    ages = replace(OTHER, alertname="DiskAges")
    for fired in (ages, FIRED):
        receive(hall.context, [fired])
        work(hall)
    assert (show(hall)["state"], show(hall)["cause"]) == ("drained", "alert 2")
    ends = [OVER, replace(ages, is_resolved=True)]
    for over in ends if first_over == "evacuate" else reversed(ends):
        assert show(hall)["state"] == "drained"
        receive(hall.context, [over])
        work(hall)
    assert (show(hall)["state"], state_of(hall, "alpha"), set(where(hall).values())) == (
        "restored",
        "online",
        {"alpha"},
    )


# -- deliveries -------------------------------------------------------------------------------------------------------


def test_one_message_is_enough_for_all(hall: World) -> None:
    add_rule(hall.context, "DiskFails", CORDON_IT)
    receive(hall.context, [replace(FIRED, fingerprint=f"f{number}") for number in range(20)])
    assert asked(hall) == [0]
    hall.sent.clear()
    ask_for_alerts(hall.context, held_too=False)
    assert asked(hall) == [0]
    work(hall)
    assert {row["state"] for row in list_alerts(hall.context)} == {"done"}
    ask_for_alerts(hall.context, held_too=True)
    assert asked(hall) == []


def test_what_was_about_no_node_is_looked_at_again(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    fired = replace(FIRED, labels={"instance": "omega:9100"})
    assert outcome(hall, fired, fired) == ["refused", "refused"]
    hall.change(Node, Node.name == "alpha", name="omega")
    assert outcome(hall, fired) == ["waiting"]
    work(hall)
    assert (hall.count(Alert), newest(hall)["state"], newest(hall)["problem"]) == (1, "done", None)
    assert hall.kinds("alert.") == ["refused", "received", "done"]


def test_rule_that_was_mended_is_asked_again(hall: World) -> None:
    add_rule(hall.context, "DiskFails", replace(EMPTY_IT, label="node"))
    assert outcome(hall, FIRED) == ["refused"]
    remove_rule(hall.context, "DiskFails")
    assert outcome(hall, FIRED) == ["refused"]
    add_rule(hall.context, "DiskFails", CORDON_IT)
    assert outcome(hall, FIRED) == ["waiting"]
    assert newest(hall)["action"] == "cordon"


def test_dry_run_of_a_rule_that_is_carried_out_since_is_done(hall: World) -> None:
    add_rule(hall.context, "DiskFails", replace(CORDON_IT, dry_run=True))
    assert outcome(hall, FIRED) == ["dry_run"]
    remove_rule(hall.context, "DiskFails")
    add_rule(hall.context, "DiskFails", CORDON_IT)
    assert outcome(hall, FIRED) == ["waiting"]
    work(hall)
    assert (state_of(hall, "alpha"), hall.count(Alert)) == ("maintenance", 1)


def test_rehearsal_says_that_it_would_wait(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    hall.change(Node, Node.name != "alpha", state="maintenance")
    (found,) = rehearse(hall.context, [FIRED])
    assert found["message"].startswith("would wait: db, mail, web cannot leave: no node takes it: ")


def test_rehearsal_says_of_each_why_not(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    hall.change(Node, Node.name == "beta", state="lost")
    found = rehearse(hall.context, [replace(FIRED, labels={"instance": "beta"}), FIRED])
    assert [(each["outcome"], each["plan"] is None) for each in found] == [("refused", True), ("dry_run", False)]
    assert "lost" in found[0]["message"]
