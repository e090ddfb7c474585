"""An alert is acted on once, by its rule, whoever dies and however often it comes; and taken back if asked for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from haulier.errors import Refused
from haulier.services import evacuations, windows
from haulier.services.alert_actions import act, ask_for_alerts
from haulier.services.alert_rules import Answer, add_rule, list_rules, remove_rule
from haulier.services.alerts import Fired, list_alerts, receive, rehearse
from haulier.services.nodes import NodeChange, change_node
from models import Alert, AlertAction, AlertRule, Evacuation, Node
from tests.unit.services.hall import play, show, state_of, where
from tests.unit.services.world import World

BEGUN = datetime(2026, 5, 1, 12, tzinfo=UTC)
FIRED = Fired("DiskFails", "f00d", BEGUN, {"alertname": "DiskFails", "instance": "alpha:9100"})
OVER = replace(FIRED, is_resolved=True)
OTHER = replace(FIRED, fingerprint="beef")
EMPTY_IT = Answer(AlertAction.EVACUATE, restore=True)
CORDON_IT = Answer(AlertAction.CORDON, restore=True)


def outcome(world: World, *fired: Fired) -> list[str]:
    return [each["outcome"] for each in receive(world.context, fired)]


def work(world: World) -> None:
    """The control worker acts on what it was told of; everybody else works too."""
    while world.sent:
        for message in list(world.sent):
            if message.task == "haulier.alert":
                world.sent.remove(message)
                act(world.context, message.row)
            elif message.task == "haulier.windows":
                world.sent.remove(message)
                windows.sweep_windows(world.context)
        play_on(world)


def play_on(world: World) -> None:
    others = [message for message in world.sent if message.task in ("haulier.alert", "haulier.windows")]
    for message in others:
        world.sent.remove(message)
    play(world)
    world.sent.extend(others)


def newest(world: World) -> dict[str, Any]:
    return list_alerts(world.context)[0]


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
    receive(hall.context, [replace(OTHER, is_resolved=True)])
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
    assert not any(message.task == "haulier.alert" for message in hall.sent), "not at each beat"
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


def test_whoever_dies_after_the_act_is_followed_by_one_who_knows_whose_it_is(hall: World) -> None:
    """The evacuation is there, and the alert does not know of it."""
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    evacuations.evacuate(hall.context, "alpha", evacuations.Wishes(cause="alert 1"))
    hall.sent[:] = [message for message in hall.sent if message.task != "haulier.alert"]
    ask_for_alerts(hall.context, held_too=False)
    work(hall)
    assert (newest(hall)["state"], newest(hall)["evacuation"], hall.count(Evacuation)) == ("done", 1, 1)
    receive(hall.context, [OVER])
    work(hall)
    assert show(hall)["state"] == "restored"


def test_what_is_over_while_its_node_is_looked_at_is_taken_back(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    evacuate = evacuations.evacuate

    def slowly(*args: Any) -> Any:
        document = evacuate(*args)
        receive(hall.context, [OVER])
        return document

    monkeypatch.setattr(evacuations, "evacuate", slowly)
    work(hall)
    assert show(hall)["state"] == "restored"


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
    receive(hall.context, [replace(OTHER, is_resolved=True)])
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
