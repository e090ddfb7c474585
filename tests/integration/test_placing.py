"""What placing reads is the same in both databases: numbers out of JSON, sums, what is on its way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from haulier.planner.placing.cluster import Host
from haulier.services import evacuations
from haulier.services.cluster import Question, load_census
from haulier.services.evacuation_view import list_evacuations
from haulier.services.lookup import find_vm
from haulier.services.migrations import file_migration
from haulier.services.operations import file_operation
from models import Database, Node, Operation, OperationKind, Vm
from tests.unit.services.hall import GIB, open_hall, play, show
from tests.unit.services.test_evacuation_plan import PLACES, populate, targets
from tests.unit.services.world import World, between, neighbour, open_world


@pytest.fixture
def hall(database_url: str, tmp_path: Path) -> Iterator[World]:
    with open_world(Database(database_url), tmp_path) as world:
        world.populate()
        world.add_vm()
        yield open_hall(world)


def test_places_are_the_same_in_both(hall: World) -> None:
    populate(hall)
    assert targets(evacuations.plan_evacuation(hall.context, "alpha")) == PLACES


def test_numbers_out_of_json_may_be_large_or_missing(hall: World) -> None:
    """4 TiB in KiB is more than 32 bits hold; one that never ran has what it is defined with."""
    definition = {**hall.vm().definition, "memory_mib": 3 << 10, "cores": 2, "sockets": 3}
    hall.change(Vm, Vm.name == "web", pinned={"ram_kib": 4 << 30})
    hall.change(Vm, Vm.name == "db", pinned={}, definition=definition)
    hall.change(Vm, Vm.name == "mail", pinned={}, definition={**definition, "memory_mib": 512, "cores": None})
    with hall.context.database.read() as session:
        census = load_census(hall.context, session, Question(()))
    assert {guest.name: (guest.ram_bytes, guest.cpus) for guest in census.cluster().staying} == {
        "web": (4096 * GIB, 1), "db": (3 * GIB, 6), "mail": (GIB // 2, 3),
    }  # fmt: skip


def test_what_is_on_its_way_is_summed_up(hall: World) -> None:
    room = {"ram_bytes": 16 * GIB, "ram_free_bytes": 16 * GIB, "storage_free_bytes": {"local": 100 * GIB}}
    hall.change(Node, facts=room)
    before = beta(hall)
    for name in ("web", "db"):
        file_migration(hall.context, name, target="beta")
    after = beta(hall)
    assert (after.cpus_taken, after.ram_taken_bytes - before.ram_taken_bytes) == (2, 2 * GIB)
    taken = before.storages["local"].free_bytes - after.storages["local"].free_bytes
    assert taken == 2 * (GIB + (1 << 20) + (4 << 20))


def beta(world: World) -> Host:
    with world.context.database.read() as session:
        return load_census(world.context, session, Question(())).cluster().by_name["beta"]


def test_evacuation_is_counted_and_shown(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    (document,) = list_evacuations(hall.context)
    assert (document["counts"], show(hall)["counts"]) == ({"done": 3}, {"done": 3})
    evacuations.restore(hall.context, "alpha")
    play(hall)
    assert [(each["state"], each["counts"]) for each in list_evacuations(hall.context)] == [("restored", {"done": 3})]


def test_vm_that_is_stopped_while_it_is_written_down(postgres_url: str, tmp_path: Path) -> None:
    """Each refers to what the other holds, and neither waits for the other for ever."""
    with open_world(Database(postgres_url), tmp_path) as world, neighbour(world) as other:
        world.populate()
        world.add_vm()
        open_hall(world)

        def stop() -> None:
            with other.context.unit() as unit:
                file_operation(unit, find_vm(unit.session, "web", lock=True), OperationKind.STOP, grace_s=0.0)

        with between(world, "INSERT INTO evacuation_vm", stop) as stopped:
            evacuations.evacuate(world.context, "alpha")
        assert stopped.exception() is None
        assert world.count(Operation) == 1
