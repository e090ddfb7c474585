"""Alerts that come at the same moment, on connections of their own: one after the other decides whose a node is."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from haulier.services import evacuations
from haulier.services.alert_actions import act
from haulier.services.alert_rules import add_rule
from haulier.services.alerts import list_alerts, receive
from haulier.services.nodes import NodeChange, change_node
from models import Alert, Database, Evacuation
from tests.unit.services.alarms import CORDON_IT, EMPTY_IT, FIRED, OTHER, OTHER_OVER, OVER, work
from tests.unit.services.hall import open_hall, show, state_of
from tests.unit.services.world import World, between, neighbour, open_world


@pytest.fixture
def hall(postgres_url: str, tmp_path: Path) -> Iterator[World]:
    with open_world(Database(postgres_url), tmp_path) as world:
        world.populate()
        world.add_vm()
        yield open_hall(world)


def test_two_that_are_over_at_one_moment_bring_all_back(hall: World) -> None:
    """The first leaves the node to the other one, which does not know of it yet."""
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    receive(hall.context, [OTHER])
    work(hall)
    with neighbour(hall) as other:
        with between(hall, "UPDATE evacuation SET", lambda: receive(other.context, [OTHER_OVER])) as theirs:
            receive(hall.context, [OVER])
        theirs.result()
    work(hall)
    assert (show(hall)["state"], state_of(hall, "alpha")) == ("restored", "online")


def test_over_while_its_act_is_written(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    hall.sent.clear()
    with neighbour(hall) as other:
        with between(hall, "INSERT INTO evacuation ", lambda: receive(other.context, [OVER])) as theirs:
            act(hall.context, 1)
        theirs.result()
    work(hall)
    assert (list_alerts(hall.context)[0]["state"], state_of(hall, "alpha")) == ("resolved", "online")
    assert show(hall)["state"] in ("cancelled", "restored")


@pytest.mark.parametrize("at", ["9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+00:00"])
def test_begin_that_the_servers_own_zone_cannot_say(hall: World, at: str) -> None:
    """Whoever may deliver alerts must not be able to write a row that nobody can read again."""
    add_rule(hall.context, "DiskFails", CORDON_IT)
    receive(hall.context, [replace(FIRED, starts_at=datetime.fromisoformat(at))])
    assert [each["starts_at"] for each in list_alerts(hall.context)] == [at]


def test_two_that_deliver_the_same_in_any_order(hall: World) -> None:
    """Neither waits for the other for ever, and each alert is written once."""
    add_rule(hall.context, "DiskFails", CORDON_IT)
    many = [replace(FIRED, fingerprint=f"f{number}") for number in range(60)]
    with neighbour(hall) as other, ThreadPoolExecutor(2) as pool:
        for delivery in (many, [replace(each, is_resolved=True) for each in many]):
            both = [
                pool.submit(receive, hall.context, delivery),
                pool.submit(receive, other.context, delivery[::-1]),
            ]
            for each in both:
                each.result()
    work(hall)
    assert (hall.count(Alert), hall.count(Evacuation), state_of(hall, "alpha")) == (60, 0, "online")


def test_person_and_alert_at_one_moment(hall: World) -> None:
    """Whoever comes first, neither waits for the other for ever."""
    add_rule(hall.context, "DiskFails", CORDON_IT)
    receive(hall.context, [FIRED])
    work(hall)
    with neighbour(hall) as other:

        def person() -> None:
            change_node(other.context, "alpha", NodeChange(maintenance=False))

        with between(hall, "SELECT evacuation.", person) as theirs:
            receive(hall.context, [OVER])
        theirs.result()
    work(hall)
    assert (state_of(hall, "alpha"), list_alerts(hall.context)[0]["state"]) == ("online", "resolved")


def test_person_empties_a_node_while_its_alert_ends(hall: World) -> None:
    add_rule(hall.context, "DiskFails", EMPTY_IT)
    receive(hall.context, [FIRED])
    work(hall)
    with neighbour(hall) as other:
        with between(hall, "SELECT evacuation.", lambda: evacuations.evacuate(other.context, "alpha")) as theirs:
            receive(hall.context, [OVER])
        theirs.result()
    work(hall)
    assert (show(hall)["state"], show(hall)["restore_at"]) == ("drained", None)
