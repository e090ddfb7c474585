"""What placing is told of nodes and VMs: room that was promised is taken, and what is not known refuses nobody."""

from __future__ import annotations

from math import inf
from typing import Any

from haulier.services.cluster import Question, load_cluster
from haulier.services.migrations import file_migration
from models import Node, Replica, Storage, Vm
from tests.unit.services.hall import GIB
from tests.unit.services.world import World

HEADROOM = 64 << 20
FACTS = {"ram_bytes": 16 * GIB, "ram_free_bytes": 12 * GIB, "cpus": 4, "storage_free_bytes": {"local": 100 * GIB}}


def hosts(world: World, **question: Any) -> Any:
    with world.context.database.read() as session:
        return load_cluster(world.context, session, Question((), **question)).by_name


def test_ram_is_what_is_free_and_by_policy_what_is_not_promised(hall: World) -> None:
    hall.change(Node, facts=FACTS)
    hall.change(Vm, pinned={"ram_kib": 5 << 20})
    alpha = hosts(hall)["alpha"]
    assert alpha.ram_bytes - alpha.ram_taken_bytes == GIB - HEADROOM, "three may have 5 of 16 GiB each"
    hall.context.settings.placement_ram = "used"
    alpha = hosts(hall)["alpha"]
    assert alpha.ram_bytes - alpha.ram_taken_bytes == 12 * GIB - HEADROOM, "as it was measured"


def test_small_change_of_what_is_free_changes_nothing(hall: World) -> None:
    hall.change(Node, facts=FACTS)
    before = hosts(hall)["beta"]
    hall.change(Node, facts=FACTS | {"ram_free_bytes": 12 * GIB + (100 << 20)})
    assert hosts(hall)["beta"] == before


def test_what_is_on_its_way_has_its_room_already(hall: World) -> None:
    hall.change(Node, facts=FACTS)
    before = hosts(hall)["beta"]
    file_migration(hall.context, "web", target="beta")
    after = hosts(hall)["beta"]
    assert after.ram_taken_bytes - before.ram_taken_bytes == GIB
    assert after.cpus_taken == 1
    taken = before.storages["local"].free_bytes - after.storages["local"].free_bytes
    assert taken == (1 << 30) + (1 << 20) + (4 << 20)


def test_what_is_not_known_refuses_nobody(hall: World) -> None:
    beta = hosts(hall)["beta"]
    assert (beta.cpus, beta.storages["local"].free_bytes, beta.machines, beta.bridges) == (inf, inf, None, None)


def test_cpus_may_be_overcommitted_or_not_be_counted(hall: World) -> None:
    hall.change(Node, facts=FACTS)
    assert hosts(hall)["beta"].cpus == 32
    hall.context.settings.cpu_overcommit = 0
    assert hosts(hall)["beta"].cpus == inf


def test_guest_that_sees_its_hosts_cpu_goes_to_the_same_only(hall: World) -> None:
    hall.change(Node, facts=FACTS | {"cpu_model": "A"})
    hall.change(Vm, Vm.name == "web", pinned={"ram_kib": 1 << 20, "cpu": "host,+x", "accel": "kvm"})
    with hall.context.database.read() as session:
        guests = load_cluster(hall.context, session, Question(())).guest_named
    assert (guests["web"].cpu_model, guests["db"].cpu_model) == ("A", None)


def test_replica_makes_a_node_near(hall: World) -> None:
    hall.add_replica("gamma", "web/disk.qcow2")
    assert (hall.count(Replica), hall.count(Storage)) == (1, 4)
    with hall.context.database.read() as session:
        guests = load_cluster(hall.context, session, Question([1])).guest_named
    assert guests["web"].near == {"gamma"}
    assert (guests["web"].needs("gamma"), bool(guests["web"].needs("beta"))) == ({}, True)
