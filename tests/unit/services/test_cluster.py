"""What placing is told of nodes and VMs: room that was promised is taken, what is not known refuses nobody, and however
many there are, they are read in as many statements.
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from typing import Any

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.errors import Problem
from haulier.services import cluster_rows, rules
from haulier.services.cluster import Census, Question, load_census
from haulier.services.filing import Terms
from haulier.services.migrations import file_migration
from models import Evacuation, EvacuationVm, Migration, Node, Replica, RuleKind, Storage, Vm, VmState
from tests.unit.services.hall import GIB
from tests.unit.services.world import World, statements

HEADROOM = 64 << 20
FACTS = {"ram_bytes": 16 * GIB, "ram_free_bytes": 12 * GIB, "cpus": 4, "storage_free_bytes": {"local": 100 * GIB}}


def census(world: World, *vms: int, **question: Any) -> Census:
    with world.context.database.read() as session:
        return load_census(world.context, session, Question(vms, **question))


def hosts(world: World, **question: Any) -> Any:
    return census(world, **question).cluster().by_name


def test_ram_is_what_is_free_and_by_policy_what_is_not_promised(hall: World) -> None:
    hall.change(Node, facts=FACTS)
    hall.change(Vm, pinned={"ram_kib": 5 << 20})
    alpha = hosts(hall)["alpha"]
    assert alpha.ram_bytes - alpha.ram_taken_bytes == GIB - HEADROOM, "three may have 5 of 16 GiB each"
    hall.context.settings.placement_ram = "used"
    alpha = hosts(hall)["alpha"]
    assert alpha.ram_bytes - alpha.ram_taken_bytes == 12 * GIB - HEADROOM, "as it was measured"


def test_one_that_is_off_for_its_move_takes_what_it_is_to_have(hall: World) -> None:
    """Of an evacuation; another one that is planned meanwhile must not give its room away."""
    hall.change(Node, facts=FACTS)
    hall.change(Vm, pinned={"ram_kib": 5 << 20})
    with hall.context.database.write() as session:
        evacuation = Evacuation(node_id=1, node_was="online", state="running", created_at=now())
        evacuation.vms.append(EvacuationVm(vm_id=1, is_home=False, stopped_at=now()))
        session.add(evacuation)

    def free(node: str) -> int:
        host = hosts(hall)[node]
        return int(host.ram_bytes - host.ram_taken_bytes)

    before = free("beta")
    hall.change(Vm, Vm.name == "web", state=VmState.STOPPED)
    assert free("alpha") == GIB - HEADROOM, "where it is started if it does not move"
    file_migration(hall.context, "web", target="beta", terms=Terms(offline=True))
    assert free("beta") == before - 5 * GIB
    assert [guest.runs for guest in census(hall, 1).cluster().guests] == [True]


def test_one_that_is_being_stopped_for_its_move_has_its_room_where_it_is_to_go(hall: World) -> None:
    """Its migration is filed when it is off; until then another plan would give its room away."""
    hall.change(Node, facts=FACTS)
    rules.add_rule(hall.context, "pair", RuleKind.APART, vms=["web", "db"])
    before = hosts(hall)["beta"]
    with hall.context.database.write() as session:
        evacuation = Evacuation(node_id=1, node_was="online", state="running", created_at=now())
        evacuation.vms.append(EvacuationVm(vm_id=1, is_home=False, stopped_at=now(), target_id=2))
        session.add(evacuation)
    for state in (VmState.RUNNING, VmState.STOPPED):
        hall.change(Vm, Vm.name == "web", state=state)
        beta, web = hosts(hall)["beta"], census(hall).cluster().guest_named["web"]
        assert beta.ram_taken_bytes - before.ram_taken_bytes == GIB
        assert before.storages["local"].free_bytes - beta.storages["local"].free_bytes == (1 << 30) + (5 << 20)
        assert (web.host, web.leaving) == ("beta", "alpha")
    file_migration(hall.context, "web", target="gamma", terms=Terms(offline=True))
    assert hosts(hall)["beta"] == before, "somebody sends it elsewhere"
    hall.change(Migration, state="cancelled")
    hall.change(EvacuationVm, problem=Problem("move_not_begun", "it is not", "").as_dict())
    assert hosts(hall)["beta"] == before, "it is started where it is"
    hall.change(EvacuationVm, problem=None)
    hall.change(Evacuation, state="cancelled")
    assert hosts(hall)["beta"] == before
    hall.change(Evacuation, state="running")
    hall.change(Vm, Vm.name == "web", node_id=3)
    assert hosts(hall)["beta"] == before, "it has moved"


def test_guest_is_counted_by_policy_as_what_it_uses(hall: World) -> None:
    hall.change(Node, facts=FACTS | {"guest_ram_bytes": {"web": 600 << 20, "db": 100 * GIB}})
    hall.change(Vm, pinned={"ram_kib": 5 << 20})

    def needs() -> dict[str, int]:
        return {guest.name: guest.ram_bytes for guest in census(hall, 1, 2, 3).cluster().guests}

    assert set(needs().values()) == {5 * GIB}
    hall.context.settings.placement_ram = "used"
    assert needs() == {"web": 768 << 20, "db": 5 * GIB, "mail": 5 * GIB}, "mail was seen by nobody"
    file_migration(hall.context, "web", target="beta")
    beta = hosts(hall)["beta"]
    assert beta.ram_bytes - beta.ram_taken_bytes == 12 * GIB - HEADROOM - (768 << 20)


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
    guests = census(hall, 1, 2).cluster().guest_named
    assert (guests["web"].cpu_model, guests["db"].cpu_model) == ("A", None)


def test_replica_makes_a_node_near(hall: World) -> None:
    hall.add_replica("gamma", "web/disk.qcow2")
    assert (hall.count(Replica), hall.count(Storage)) == (1, 4)
    guests = census(hall, 1).cluster().guest_named
    assert guests["web"].near == {"gamma"}
    assert (guests["web"].needs("gamma"), bool(guests["web"].needs("beta"))) == ({}, True)


def test_of_those_that_stay_only_what_counts_is_told(hall: World) -> None:
    """Who runs takes room, and whom a rule names is beside others; nobody else counts."""
    hall.change(Vm, Vm.name != "web", state=VmState.STOPPED)
    rules.add_rule(hall.context, "pair", RuleKind.APART, vms=["web", "db"])
    cluster = census(hall).cluster()
    assert {guest.name: guest.runs for guest in cluster.staying} == {"web": True, "db": False}
    assert (cluster.guest_named["web"].host, cluster.guest_named["web"].ram_bytes) == ("alpha", GIB)
    assert [guest.name for guest in cluster.staying_by_rule] == ["web", "db"]


@pytest.mark.parametrize("waits", [False, True])
def test_who_is_stuck_takes_its_room_as_if_nobody_had_asked_for_it(hall: World, waits: bool) -> None:
    """On its node, and where it waits to go."""
    hall.change(Node, facts=FACTS)
    if waits:
        file_migration(hall.context, "web", target="beta")
    free, stuck = census(hall, 1, 2).cluster(), census(hall, 1, 2).cluster(stuck=["web"])
    unasked = census(hall, 2).cluster()
    assert stuck.hosts == unasked.hosts != free.hosts
    assert [guest.name for guest in stuck.guests] == ["db"]
    (web,) = (guest for guest in stuck.staying if guest.name == "web")
    assert web.host == ("beta" if waits else "alpha")


def test_what_each_avoids_may_change_from_one_round_to_the_next(hall: World) -> None:
    problem = Problem("no_space", "it is full", "Make room.")
    known = census(hall, 1, 2)
    avoids = {guest.name: guest.avoids for guest in known.cluster(avoids={"web": {"beta": problem}}).guests}
    assert avoids == {"web": {"beta": problem}, "db": {}}
    assert not any(guest.avoids for guest in known.cluster().guests)


def test_as_many_statements_for_many_vms_as_for_few(hall: World) -> None:
    rules.add_rule(hall.context, "pair", RuleKind.APART, vms=["web", "db"])
    hall.add_replica("gamma", "web/disk.qcow2")
    with statements(hall) as few:
        census(hall, 1)
    for number in range(20):
        hall.add_vm(f"more{number}")
    file_migration(hall.context, "more0", target="beta")
    with statements(hall) as many:
        census(hall, *range(1, 12))
    assert len(many) == len(few)
    assert len(few) < 16


def test_more_vms_than_one_statement_can_name_are_told_too(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    file_migration(hall.context, "web", target="beta")
    hall.add_replica("gamma", "web/disk.qcow2")
    few = census(hall, 1, 2).cluster()
    monkeypatch.setattr(cluster_rows, "_MOST_NUMBERS", 1)
    assert census(hall, 1, 2).cluster() == few
    assert [guest.name for guest in few.guests] == ["db", "web"]


def settled(world: World, *names: str, stuck: Collection[str] = ()) -> Any:
    """The hosts, with these VMs to be placed and where they are."""
    with world.context.database.read() as session:
        ids = session.scalars(select(Vm.id).where(Vm.name.in_(names))).all()
    return census(world, *ids, in_place=True).cluster(stuck=stuck).by_name


def test_what_those_have_that_may_stay_is_theirs_and_not_taken(hall: World) -> None:
    hall.change(Node, facts=FACTS | {"ram_free_bytes": 16 * GIB})
    alpha = settled(hall, "web", "db")["alpha"]
    assert (alpha.ram_bytes, alpha.ram_taken_bytes) == (16 * GIB - HEADROOM, GIB), "that is mail's"
    assert alpha.cpus_taken == 1
    # With all three there it has as much free as evacuations see.
    assert alpha.ram_bytes - 3 * GIB == hosts(hall)["alpha"].ram_bytes - hosts(hall)["alpha"].ram_taken_bytes


def test_what_else_runs_on_a_host_leaves_less_for_guests_and_makes_it_no_fuller(hall: World) -> None:
    hall.change(Node, facts=FACTS | {"ram_free_bytes": 8 * GIB})
    seen = settled(hall, "web", "db", "mail")
    assert (seen["alpha"].ram_bytes, seen["alpha"].ram_taken_bytes) == (11 * GIB - HEADROOM, 0)
    assert (seen["beta"].ram_bytes, seen["beta"].ram_taken_bytes) == (8 * GIB - HEADROOM, 0)


def test_node_that_has_promised_more_than_it_has_is_fuller_than_full(hall: World) -> None:
    hall.change(Node, facts=FACTS)
    hall.change(Vm, pinned={"ram_kib": 6 << 20})
    alpha = settled(hall, "web", "db", "mail")["alpha"]
    assert (alpha.ram_bytes, alpha.ram_taken_bytes) == (16 * GIB - HEADROOM, 0), "three have 18 of it"


def test_who_is_about_to_leave_keeps_his_room_and_fills_nothing(hall: World) -> None:
    hall.change(Node, facts=FACTS | {"ram_free_bytes": 16 * GIB})
    file_migration(hall.context, "mail", target="beta")
    seen = settled(hall, "web", "db")
    assert (seen["alpha"].ram_bytes, seen["alpha"].ram_taken_bytes) == (15 * GIB - HEADROOM, 0)
    assert (seen["beta"].ram_bytes, seen["beta"].ram_taken_bytes) == (16 * GIB - HEADROOM, GIB)


def test_those_that_may_stay_count_by_policy_as_what_they_use(hall: World) -> None:
    hall.context.settings.placement_ram = "used"
    hall.change(Node, facts=FACTS | {"guest_ram_bytes": {"web": 2 * GIB // 3}})
    hall.change(Vm, pinned={"ram_kib": 5 << 20})
    alpha = settled(hall, "web", "db")["alpha"]
    assert alpha.ram_taken_bytes == 5 * GIB, "mail was seen by nobody"
    assert alpha.ram_bytes == (12 + 5 + 5) * GIB - HEADROOM + (768 << 20)


def test_node_that_says_nothing_of_its_ram_has_none(hall: World) -> None:
    hall.change(Node, facts={})
    alpha = settled(hall)["alpha"]
    assert (alpha.ram_bytes, alpha.ram_taken_bytes) == (0, 0)


def test_one_that_may_stay_and_is_stuck_fills_its_node_as_before(hall: World) -> None:
    hall.change(Node, facts=FACTS)
    hall.change(Vm, Vm.name == "mail", state=VmState.STOPPED)
    assert settled(hall, "web", "db", "mail", stuck=["web", "mail"]) == settled(hall, "db")
