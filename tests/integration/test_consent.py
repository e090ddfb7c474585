"""A VM that somebody consented to stop, on both databases: their locks differ."""

from __future__ import annotations

from pathlib import Path

from haulier.services.consent import consent, follow_consents
from models import Database, Operation, QueueLimit
from tests.unit.services.consents import hold_web, state, work
from tests.unit.services.hall import hold, open_hall, where
from tests.unit.services.world import between, neighbour, open_world


def test_it_is_stopped_moved_and_started(database_url: str, tmp_path: Path) -> None:
    with open_world(Database(database_url), tmp_path) as world:
        world.populate()
        world.add_vm()
        hold_web(open_hall(world))
        consent(world.context, 1, "web")
        assert work(world) == ["stop", "start"]
        assert (state(world), where(world)["web"] != "alpha") == ("running", True)


def test_two_that_look_at_one_moment_stop_it_once(postgres_url: str, tmp_path: Path) -> None:
    with open_world(Database(postgres_url), tmp_path) as world, neighbour(world) as other:
        world.populate()
        world.add_vm()
        hold_web(open_hall(world))
        hold(world)
        consent(world.context, 1, "web")
        assert world.count(Operation) == 0
        world.change(QueueLimit, allowed=5)
        with between(world, "INSERT INTO operation", lambda: follow_consents(other.context)) as second:
            follow_consents(world.context)
        assert second.exception() is None
        assert world.count(Operation) == 1
