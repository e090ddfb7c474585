"""A plan is made of what was read at one moment, with no transaction open meanwhile; what changes meanwhile is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import delete, select

from haulier.definition import Role, VmDefinition, VolumeSpec
from haulier.services import evacuation_plan, evacuation_steps, evacuations, placed_moves, rules
from haulier.services.evacuation_steps import go_on
from haulier.services.evacuation_wishes import Wishes
from haulier.services.migrations import file_migration
from models import Migration, Node, RuleKind, Storage, TpmLedger, Vm, VmState, Volume, VolumeRole
from tests.unit.services.hall import GIB, beat, play, show, where
from tests.unit.services.world import World, between, statements

# Something is done inside its block.
Meanwhile = Callable[[Callable[[], object]], AbstractContextManager[object]]
FACTS = {"swtpm_version": "0.7.1", "libtpms_version": "0.9.2", "cpus": 16}


@contextmanager
def while_places_are_looked_for(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> Iterator[list[object]]:
    """Inside the block, `act` is done each time that the search looks at its clock; what it gives."""
    found = list[object]()

    def clock() -> float:
        found.append(act())
        return 0.0

    with monkeypatch.context() as patch:
        patch.setattr(evacuation_plan, "steady_s", clock)
        yield found
    assert found, "nobody has looked for places"


def once(act: Callable[[], object]) -> Callable[[], object]:
    """It is done the first time only."""
    left = [act]
    return lambda: left.pop()() if left else None


def targets(document: dict[str, Any]) -> dict[str, str]:
    return {each["vm"]: each["target"] for each in document["plan"]}


def test_no_transaction_is_open_while_places_are_looked_for(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL would end one, and SQLite's log would grow meanwhile."""
    pool = hall.context.database.engine.pool
    with while_places_are_looked_for(monkeypatch, pool.checkedout) as open_:  # type: ignore[attr-defined]
        evacuations.plan_evacuation(hall.context, "alpha")
        evacuations.evacuate(hall.context, "alpha")
        play(hall)
        evacuations.restore(hall.context, "alpha")
    assert set(open_) == {0}
    assert len(open_) >= 4, "for the plan, before the evacuation, in it, and on the way back"


def recover(world: World) -> None:
    """Web was recovered on beta: no migration tells of that."""
    world.change(Vm, Vm.name == "web", node_id=2)


@pytest.fixture(params=["while places are looked for", "before they are written down"])
def meanwhile(hall: World, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Meanwhile:
    """Something that happens at one of two moments while `go_on` is at work."""
    if request.param == "while places are looked for":
        return lambda act: while_places_are_looked_for(monkeypatch, once(act))
    return lambda act: between(hall, "BEGIN IMMEDIATE", act)


def test_vm_that_is_elsewhere_by_then_is_not_filed(hall: World, meanwhile: Meanwhile) -> None:
    evacuations._file(hall.context, "alpha", Wishes())
    with meanwhile(partial(recover, hall)):
        go_on(hall.context, 1)
    assert set(targets(show(hall))) == {"db", "mail"}
    assert hall.kinds("evacuation.") == ["planned", "placed", "placed", "running"], "nobody is held"
    play(hall)
    assert (show(hall)["state"], where(hall)["web"]) == ("drained", "beta")


def test_vm_that_is_gone_by_then_is_forgotten(hall: World, meanwhile: Meanwhile) -> None:
    """It could not be defined."""
    evacuations._file(hall.context, "alpha", Wishes())
    with meanwhile(partial(forget, hall, "web")):
        go_on(hall.context, 1)
    assert set(targets(show(hall))) == {"db", "mail"}
    assert hall.kinds("evacuation.") == ["planned", "placed", "placed", "running"], "nobody is held"
    play(hall)
    assert show(hall)["state"] == "drained"


def forget(world: World, name: str) -> None:
    with world.context.database.write() as session:
        vm_id = session.scalars(select(Vm.id).where(Vm.name == name)).one()
        for table in (TpmLedger, Volume):
            session.execute(delete(table).where(table.vm_id == vm_id))
        session.execute(delete(Vm).where(Vm.id == vm_id))


def test_plan_says_who_moved_meanwhile(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with while_places_are_looked_for(monkeypatch, once(partial(recover, hall))):
        plan = evacuations.plan_evacuation(hall.context, "alpha")
    assert [(each["vm"], each["code"]) for each in plan["blocked"]] == [("web", "vm_moved")]
    assert set(targets(plan)) == {"db", "mail"}


def test_last_plan_stands_without_who_moved_meanwhile(
    hall: World, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody plans anew any more; the next look does."""
    evacuations._file(hall.context, "alpha", Wishes())
    monkeypatch.setattr(evacuation_steps, "PLACED_AGAIN", 1)
    with meanwhile(partial(recover, hall)):
        go_on(hall.context, 1)
    assert [each.vm_id for each in migrations(hall)] == [hall.vm("db").id, hall.vm("mail").id]
    assert (show(hall)["state"], show(hall)["blocked"]) == ("running", [])
    beat(hall)
    play(hall)
    assert (show(hall)["state"], where(hall)["web"]) == ("drained", "beta")


def migrations(world: World) -> list[Migration]:
    with world.context.database.read() as session:
        return list(session.scalars(select(Migration).order_by(Migration.id)))


def test_vm_that_stops_meanwhile_moves_as_one_that_does_not_run(hall: World, meanwhile: Meanwhile) -> None:
    evacuations._file(hall.context, "alpha", Wishes())
    with meanwhile(partial(hall.change, Vm, Vm.name == "web", state=VmState.STOPPED)):
        go_on(hall.context, 1)
    web = hall.vm().id
    assert {row.vm_id: row.offline for row in migrations(hall)} == {web: True, web + 1: False, web + 2: False}


def test_who_is_refused_for_good_in_the_last_round_is_named_once(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed_moves, "_ROUNDS", 1)
    with hall.context.database.write() as session:
        storage = session.scalars(select(Storage.id).where(Storage.path == "/alpha/images")).one()
        image = {"device": "ide1", "role": VolumeRole.CDROM, "storage_id": storage, "name": "a.iso", "format": "raw"}
        session.add(Volume(vm_id=hall.vm().id, **image))
    plan = evacuations.plan_evacuation(hall.context, "alpha")
    assert [(each["vm"], each["code"]) for each in plan["blocked"]] == [("web", "cdrom_local")]
    assert set(targets(plan)) == {"db", "mail"}


def test_as_many_questions_for_many_vms_as_for_few(hall: World) -> None:
    few = asked_for(hall, number=3)
    for number in range(20):
        hall.add_vm(f"more{number:02}", pinned={"ram_kib": 1 << 18})
    assert asked_for(hall, number=23) == few


def asked_for(world: World, *, number: int) -> list[int]:
    """The numbers of questions to the database for a plan, for the begin, and for what waits and is sent elsewhere."""
    with statements(world) as plan:
        assert len(evacuations.plan_evacuation(world.context, "alpha")["plan"]) == number
    evacuation_id, _ = evacuations._file(world.context, "alpha", Wishes())
    with statements(world) as begin:
        go_on(world.context, evacuation_id)
    world.change(Node, Node.name == "beta", state="maintenance")
    with statements(world) as again:
        go_on(world.context, evacuation_id)
    assert len(targets(show(world, evacuation_id))) == number
    world.change(Node, Node.name == "beta", state="online")
    evacuations.cancel(world.context, evacuation_id, undo=False)
    return [sum(each.startswith("SELECT") for each in said) for said in (plan, begin, again)]


def test_places_are_those_that_they_were_when_all_was_read_in_each_round(hall: World) -> None:
    """Replicas, rules, storages, names that are taken, room that is promised: as it was found in November 2026."""
    populate(hall)
    plan = evacuations.plan_evacuation(hall.context, "alpha")
    assert targets(plan) == PLACES
    assert [(each["vm"], each["code"]) for each in plan["blocked"]] == [("v09", "rule")]


PLACES = {
    **dict.fromkeys(("v01", "v03"), "beta"),
    **dict.fromkeys(("v02", "v06", "web"), "gamma"),
    **dict.fromkeys(("v04", "v05"), "delta"),
    **dict.fromkeys(("v07", "v08", "v10", "v11", "db", "mail"), "epsilon"),
}


def populate(world: World) -> None:
    """Five nodes of different sizes, none of which takes all that is on alpha."""
    with world.context.database.write() as session:
        sizes = {"alpha": 40, "beta": 16, "gamma": 24, "delta": 12, "epsilon": 32}
        more = Node(name="epsilon", address="a", port_first=61000, port_last=61999)
        more.storages.append(Storage(name="fast", kind="folder", path="/epsilon/fast"))
        more.storages.append(Storage(name="local", kind="folder", path="/epsilon/images"))
        session.add(more)
        for node in session.scalars(select(Node)):
            room = {"ram_bytes": sizes[node.name] * GIB, "ram_free_bytes": sizes[node.name] * GIB}
            node.facts = {**FACTS, **room, "storage_free_bytes": {"local": 30 * GIB}}
            node.heartbeat_at = session.scalars(select(Node.heartbeat_at).where(Node.name == "beta")).one()
    for number in range(16):
        world.add_vm(f"v{number:02}", pinned={"ram_kib": (1 + number * 7 % 5) << 20})
    for number, node_id in ((12, 2), (13, 3), (14, 4), (15, 5)):
        world.change(Vm, Vm.name == f"v{number}", node_id=node_id)
    world.change(Vm, Vm.name.in_(("v03", "v14")), state=VmState.STOPPED)
    world.add_replica("delta", "v05/disk.qcow2", vm_id=world.vm("v05").id)
    file_migration(world.context, "v00", target="delta")
    rules.add_rule(world.context, "apart", RuleKind.APART, vms=["v01", "v02", "v15"])
    rules.add_rule(world.context, "soft", RuleKind.TOGETHER, vms=["v06", "v13"], hard=False)
    rules.add_rule(world.context, "together", RuleKind.TOGETHER, vms=["v07", "v08"])
    rules.add_rule(world.context, "licence", RuleKind.ONLY_ON, vms=["v09"], nodes=["alpha"])
    take_name(world, "v10/ci.raw", node="gamma")


def take_name(world: World, name: str, *, node: str) -> None:
    """Another VM's volume has it there."""
    with world.context.database.write() as session:
        storage = session.scalars(select(Storage).where(Storage.path == f"/{node}/images")).one()
        spec = VolumeSpec("scsi0", Role.DISK, "local", name)
        definition = VmDefinition(name="its", volumes=(spec,)).as_dict()
        vm = session.scalars(select(Vm).where(Vm.name == "v13")).one()
        its = Vm(name="its", node_id=storage.node_id, definition=definition, created_at=vm.created_at)
        volume = Volume(device="scsi0", role=VolumeRole.DISK, storage=storage, name=name, format="raw", size_bytes=1)
        its.volumes.append(volume)
        session.add(its)
