"""Alerts about alpha, delivered and worked off."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from haulier.services import windows
from haulier.services.alert_actions import act_on_all
from haulier.services.alert_rules import Answer
from haulier.services.alerts import Fired, list_alerts, receive
from models import AlertAction
from tests.unit.services.hall import play
from tests.unit.services.world import World

BEGUN = datetime(2026, 5, 1, 12, tzinfo=UTC)
FIRED = Fired("DiskFails", "f00d", BEGUN, {"alertname": "DiskFails", "instance": "alpha:9100"})
OVER = replace(FIRED, is_resolved=True)
OTHER = replace(FIRED, fingerprint="beef")
OTHER_OVER = replace(OTHER, is_resolved=True)
EMPTY_IT = Answer(AlertAction.EVACUATE, restore=True)
CORDON_IT = Answer(AlertAction.CORDON, restore=True)


def outcome(world: World, *fired: Fired) -> list[str]:
    return [each["outcome"] for each in receive(world.context, fired)]


def work(world: World) -> None:
    """The control worker acts on what it was told of; everybody else works too."""
    while world.sent:
        for message in list(world.sent):
            if message.task == "haulier.alerts":
                world.sent.remove(message)
                act_on_all(world.context, held_too=bool(message.row))
            elif message.task == "haulier.windows":
                world.sent.remove(message)
                windows.sweep_windows(world.context)
        play_on(world)


def play_on(world: World) -> None:
    others = [message for message in world.sent if message.task in ("haulier.alerts", "haulier.windows")]
    for message in others:
        world.sent.remove(message)
    play(world)
    world.sent.extend(others)


def newest(world: World) -> dict[str, Any]:
    return list_alerts(world.context)[0]


def asked(world: World) -> list[int]:
    return [message.row for message in world.sent if message.task == "haulier.alerts"]
