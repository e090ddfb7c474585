"""The event log: in order, from where one stopped reading, in the contract's form."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

from haulier.clock import now
from haulier.services.events import list_events
from tests.unit.services.world import World


def note(world: World, *kinds: str) -> None:
    with world.context.unit() as unit:
        for kind in kinds:
            unit.note(kind, vm="web", node="alpha", migration=7, number=len(kind))


def test_form(world: World) -> None:
    note(world, "vm.started")
    ((number, event),) = list_events(world.context)
    assert event | {"at": ""} == {
        "at": "", "kind": "vm.started", "vm": "web", "node": "alpha", "migration": 7, "data": {"number": 10},
    }  # fmt: skip
    at = datetime.fromisoformat(event["at"])
    assert at.utcoffset() == timedelta(0)
    assert abs(now() - at) < timedelta(minutes=1)
    assert number == 1
    json.dumps(event)


def test_oldest_first_and_on_from_where_one_stopped(world: World) -> None:
    note(world, "a", "b", "c")
    first = list_events(world.context, limit=2)
    assert [event["kind"] for _, event in first] == ["a", "b"]
    assert [event["kind"] for _, event in list_events(world.context, after=first[-1][0])] == ["c"]
    assert list_events(world.context, after=3) == []


def test_whole_story_of_a_migration(world: World) -> None:
    world.file()
    world.fail(world.take())
    kinds = [event["kind"] for _, event in list_events(world.context)]
    assert kinds == ["migration.queued", "migration.running", "step.failed", "migration.rolling_back",
                     "migration.undone"]  # fmt: skip
    failed = list_events(world.context)[2][1]
    assert failed["data"]["problem"]["code"] == "broken"
    assert failed["migration"] == 1
