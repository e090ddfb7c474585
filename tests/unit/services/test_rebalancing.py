"""Few moves are filed, as one batch, of VMs that nobody else moves, works on, keeps, or is about to bring home."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.definition import VmDefinition
from haulier.errors import Refused
from haulier.planner.placing.cluster import Cluster
from haulier.planner.placing.rebalance import Rebalancing
from haulier.planner.placing.rebalance import rebalance as find_moves
from haulier.services import batches, evacuations, rebalancing, rules
from haulier.services.events import list_events
from haulier.services.filing import Terms
from haulier.services.limits import LimitChange, set_limits
from haulier.services.migrations import file_migration
from haulier.services.nodes import NodeChange, change_node
from haulier.services.operations import file_operation
from haulier.services.rebalancing import plan_rebalance, rebalance
from haulier.services.vms import set_policy
from models import (
    Batch,
    EvacuationPolicy,
    EvacuationVm,
    LimitScope,
    Migration,
    MigrationState,
    Node,
    OperationKind,
    RuleKind,
    Storage,
    Vm,
    VmState,
    Volume,
    VolumeRole,
)
from tests.unit.services.hall import GIB, hold, play, where
from tests.unit.services.world import World, between, statements


def planned(document: dict[str, Any]) -> set[str]:
    return {each["vm"] for each in document["plan"]}


def let_run(world: World) -> None:
    """The hosts see that the guests that came run."""
    world.change(Vm, state=VmState.RUNNING)


def test_no_move_goes_where_one_is_still_that_it_must_be_apart_from(hall: World) -> None:
    hall.change(Vm, Vm.name == "mail", node_id=2)
    hall.change(Vm, Vm.name == "db", state=VmState.STOPPED)
    for number in range(4):
        hall.add_vm(f"m{number}", pinned={"ram_kib": 1 << 20}, evacuation=EvacuationPolicy.STAY)
    rules.add_rule(hall.context, "pair", RuleKind.APART, vms=["web", "mail"])
    rules.add_rule(hall.context, "near", RuleKind.ONLY_ON, vms=["web"], nodes=["alpha", "beta"])
    hold(hall)
    file_migration(hall.context, "mail", target="gamma")
    assert plan_rebalance(hall.context)["plan"] == []
    hall.change(Migration, state=MigrationState.DONE)
    hall.change(Vm, Vm.name == "mail", node_id=3)
    assert [(move["vm"], move["target"]) for move in plan_rebalance(hall.context)["plan"]] == [("web", "beta")]


def test_plan_touches_nothing_and_is_what_is_done(hall: World) -> None:
    plan = plan_rebalance(hall.context)
    assert (hall.count(Batch), hall.count(Migration), hall.kinds("")) == (0, 0, [])
    assert (plan["batch"], plan["state"], plan["counts"]) == (None, "planned", {"to_move": 2})
    first = plan["plan"][0]
    assert first == {
        "vm": "db", "source": "alpha", "target": "beta", "mends": [], "bytes": (2 << 30) + (5 << 20),
        "reason": "RAM of alpha 19% → 13%, of beta 0% → 6%", "gain": first["gain"],
    }  # fmt: skip
    assert 0.5 < first["gain"] < 1
    assert {load["host"]: load["ram_after_bytes"] / GIB for load in plan["loads"]} == {
        "alpha": 1,
        "beta": 1,
        "delta": 1,
    }
    document = rebalance(hall.context)
    assert document["plan"] == plan["plan"]
    assert document["batch"] == 1


def test_moves_are_a_batch_that_goes_after_all_others(hall: World) -> None:
    hold(hall)
    document = rebalance(hall.context, moves=1)
    batch = batches.show_batch(hall.context, 1)
    assert (batch["name"], batch["counts"]) == ("rebalance", {"queued": 1})
    assert (document["state"], document["migrations"]) == ("open", batch["migrations"])
    assert [each["priority"] for each in batch["migrations"]] == [20]
    migration = hall.migration()
    assert (migration.tries, migration.offline) == (1, False)
    events = [event for _, event in list_events(hall.context) if event["kind"] == "rebalance.placed"]
    assert [(each["vm"], each["node"], each["migration"]) for each in events] == [("db", "alpha", 1)]
    told = events[0]["data"]
    assert (told["batch"], told["target"]) == (1, "beta")
    assert (told["reason"], told["gain"]) == (document["plan"][0]["reason"], document["plan"][0]["gain"])


def test_when_all_has_moved_nothing_is_to_be_gained(hall: World) -> None:
    rebalance(hall.context)
    play(hall)
    let_run(hall)
    assert len(set(where(hall).values())) == 3
    document = rebalance(hall.context)
    assert (document["batch"], document["state"], document["plan"], document["migrations"]) == (None, "even", [], [])
    assert (hall.count(Batch), hall.count(Migration)) == (1, 2)


def test_second_one_waits_for_the_first(hall: World) -> None:
    hold(hall)
    rebalance(hall.context, moves=1)
    with pytest.raises(Refused, match="batch 1") as refused:
        rebalance(hall.context, moves=1)
    assert refused.value.code == "rebalance_open"
    assert (hall.count(Batch), hall.count(Migration)) == (1, 1)
    assert planned(plan_rebalance(hall.context)) == {"mail"}, "what is on its way is there already"
    batches.cancel(hall.context, 1, undo=False)
    assert rebalance(hall.context, moves=1)["batch"] == 2


def test_one_that_was_filed_in_the_same_moment_is_seen(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if nobody sees the promise."""
    hold(hall)
    monkeypatch.setattr(rebalancing, "newest_promise", lambda _: (0, 0))

    def somebody_else() -> dict[str, Any]:
        set_policy(hall.context, "db", EvacuationPolicy.STAY)
        return rebalance(hall.context, moves=1)

    with between(hall, "BEGIN IMMEDIATE", somebody_else) as other, pytest.raises(Refused) as refused:
        rebalance(hall.context, moves=1)
    assert (other.result()["batch"], refused.value.code, hall.count(Migration)) == (1, "rebalance_open", 1)


@pytest.mark.parametrize("moves", [0, -1, 101, 1 << 70])
def test_number_of_moves_has_bounds(hall: World, moves: int) -> None:
    for act in (rebalance, plan_rebalance):
        with pytest.raises(Refused) as refused:
            act(hall.context, moves=moves)
        assert refused.value.code == "bad_moves"
    assert hall.count(Batch) == 0


def test_never_more_than_asked_for(hall: World) -> None:
    for number in range(6):
        hall.add_vm(f"more{number}", pinned={"ram_kib": 1 << 20})
    assert len(plan_rebalance(hall.context, moves=4)["plan"]) == 4
    assert len(plan_rebalance(hall.context)["plan"]) == rebalancing.USUAL_MOVES
    assert len(plan_rebalance(hall.context, moves=100)["plan"]) == 6


def test_who_does_not_run_or_is_to_stay_stays(hall: World) -> None:
    hall.change(Vm, Vm.name == "web", state="paused")
    set_policy(hall.context, "db", EvacuationPolicy.STAY)
    for name in ("x", "y", "z"):
        hall.add_vm(name, state="stopped", pinned={"ram_kib": 1 << 20})
    assert planned(plan_rebalance(hall.context)) == {"mail"}
    set_policy(hall.context, "mail", EvacuationPolicy.STAY)
    assert rebalance(hall.context)["batch"] is None


def test_who_is_moved_or_worked_on_by_others_is_left_to_them(hall: World) -> None:
    hold(hall)
    file_migration(hall.context, "web", target="gamma")
    assert planned(plan_rebalance(hall.context)) == {"db"}
    with hall.context.unit() as unit:
        vm = unit.session.scalars(select(Vm).where(Vm.name == "db")).one()
        file_operation(unit, vm, OperationKind.STOP, grace_s=1.0)
    assert planned(plan_rebalance(hall.context)) == {"mail"}
    assert {each["target"] for each in plan_rebalance(hall.context)["plan"]} == {"beta"}, "gamma's room is web's"


def test_who_is_to_come_home_again_is_not_sent_farther(hall: World) -> None:
    """It would be where somebody has moved it since, and stay there."""
    for name in ("gamma", "delta"):
        hall.change(Node, Node.name == name, state="maintenance")
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    let_run(hall)
    assert set(where(hall).values()) == {"beta"}
    for name in ("gamma", "delta"):
        change_node(hall.context, name, NodeChange(maintenance=False))
    assert plan_rebalance(hall.context)["plan"] == []
    evacuations.restore(hall.context, "alpha")
    play(hall)
    let_run(hall)
    assert len(plan_rebalance(hall.context)["plan"]) == 2


def test_who_was_sent_away_before_comes_home_too_and_is_not_sent_farther(hall: World) -> None:
    """By an evacuation that was given up, before the one that is not over."""
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    evacuations.cancel(hall.context, 1, undo=False)
    let_run(hall)
    for number in range(4):
        hall.add_vm(f"more{number}", pinned={"ram_kib": 1 << 20})
        hall.change(Vm, Vm.name == f"more{number}", node_id=2)
    change_node(hall.context, "gamma", NodeChange(maintenance=True))
    hall.change(Vm, Vm.name.in_(("web", "db", "mail")), node_id=2)
    assert planned(plan_rebalance(hall.context, moves=100)) & {"web", "db", "mail"}
    evacuations.evacuate(hall.context, "alpha")
    plan = plan_rebalance(hall.context, moves=100)
    assert plan["plan"]
    assert not planned(plan) & {"web", "db", "mail"}


def test_node_that_is_filled_again_is_left_alone(hall: World) -> None:
    evacuations.evacuate(hall.context, "alpha")
    play(hall)
    hold(hall)
    evacuations.restore(hall.context, "alpha")
    for number in range(4):
        hall.add_vm(f"more{number}", pinned={"ram_kib": 1 << 20})
        hall.change(Vm, Vm.name == f"more{number}", node_id=2)
    plan = plan_rebalance(hall.context)
    assert {each["target"] for each in plan["plan"]} == {"gamma", "delta"}
    assert [(each["node"], each["code"]) for each in plan["closed"]] == [("alpha", "evacuation_open")]
    hall.change(Vm, Vm.name.like("more%"), node_id=1)
    assert plan_rebalance(hall.context)["plan"] == []


def test_who_is_stopped_by_consent_is_left_until_it_was_seen_to_run_again(hall: World) -> None:
    """Also of an evacuation that was given up."""
    evacuations.evacuate(hall.context, "alpha")
    evacuations.cancel(hall.context, 1, undo=True)
    hall.change(Migration, state=MigrationState.CANCELLED, finished_at=now())
    for column in ("consent_at", "stopped_at"):
        hall.change(EvacuationVm, EvacuationVm.vm_id == hall.vm("db").id, **{column: now()})
        assert planned(plan_rebalance(hall.context)) == {"mail", "web"}
        hall.change(EvacuationVm, **{column: None})
    assert "db" in planned(plan_rebalance(hall.context))


def test_nobody_stands_still_for_balance(hall: World) -> None:
    """Though it might for as long as it takes, if its node were to be emptied."""
    hold(hall)
    set_policy(hall.context, "db", EvacuationPolicy.LIVE_OR_PAUSE)
    assert planned(rebalance(hall.context, moves=1)) == {"db"}
    assert not hall.migration().may_pause


@pytest.mark.parametrize("state", ["draining", "drained", "lost"])
def test_nothing_is_taken_from_a_node_that_is_emptied_or_lost(hall: World, state: str) -> None:
    hall.change(Node, Node.name == "alpha", state=state)
    assert plan_rebalance(hall.context)["plan"] == []


def test_silent_nodes_and_such_in_maintenance_take_nothing(hall: World) -> None:
    hall.silence("beta")
    change_node(hall.context, "gamma", NodeChange(maintenance=True))
    plan = plan_rebalance(hall.context)
    assert [each["target"] for each in plan["plan"]] == ["delta"]
    closed = {"beta": "node_silent", "gamma": "node_in_maintenance"}
    assert {each["node"]: each["code"] for each in plan["closed"]} == closed
    change_node(hall.context, "alpha", NodeChange(maintenance=True))
    assert {each["target"] for each in plan_rebalance(hall.context)["plan"]} == {"delta"}, "it may give"
    hall.silence("alpha")
    assert plan_rebalance(hall.context)["plan"] == [], "nobody is there who could"


def test_node_whose_ram_nobody_knows_is_no_part_of_it(hall: World) -> None:
    hall.change(Node, Node.name == "alpha", facts={})
    assert plan_rebalance(hall.context)["plan"] == []
    hall.change(Node, Node.name != "alpha", facts={})
    assert plan_rebalance(hall.context)["plan"] == []


def test_what_a_target_refuses_goes_elsewhere(hall: World) -> None:
    """A cloud-init image keeps its name, and somebody's is called so there."""
    for node in ("beta", "delta"):
        occupy(hall, node, "db/ci.raw")
    (move,) = plan_rebalance(hall.context, moves=1)["plan"]
    assert (move["vm"], move["target"]) == ("db", "gamma")
    occupy(hall, "gamma", "db/ci.raw")
    assert planned(rebalance(hall.context)) == {"mail", "web"}


def occupy(world: World, node: str, name: str) -> None:
    """Another VM's volume has that name on a node."""
    with world.context.database.write() as session:
        storage = session.scalars(select(Storage).where(Storage.path == f"/{node}/images")).one()
        definition = VmDefinition(name=f"on-{node}").as_dict()
        vm = Vm(name=f"on-{node}", node_id=storage.node_id, definition=definition, created_at=now())
        vm.volumes.append(
            Volume(device="ide2", role=VolumeRole.CLOUDINIT, storage=storage, name=name, format="raw", size_bytes=1)
        )
        session.add(vm)


def test_rules_come_first_and_what_stays_broken_is_named(hall: World) -> None:
    rules.add_rule(hall.context, "away", RuleKind.NOT_ON, vms=["mail"], nodes=["alpha"])
    rules.add_rule(hall.context, "nowhere", RuleKind.NOT_ON, vms=["web"], nodes=["alpha", "beta", "gamma", "delta"])
    document = rebalance(hall.context, moves=1)
    assert [(each["vm"], each["mends"]) for each in document["plan"]] == [("mail", ["away"])]
    assert document["plan"][0]["reason"].startswith("mends rule away; RAM of alpha ")
    assert document["broken_rules"] == ["nowhere"]


def test_promise_that_is_made_meanwhile_is_seen(hall: World) -> None:
    """Beta alone is open and has room for one; while it is looked for, a user sends another VM there."""
    for name in ("gamma", "delta"):
        hall.change(Node, Node.name == name, state="maintenance")
    for name, size in (("alpha", 4 * GIB), ("beta", 2 * GIB)):
        hall.change(Node, Node.name == name, facts={"ram_bytes": size, "ram_free_bytes": size})
    assert len(plan_rebalance(hall.context)["plan"]) == 1
    hold(hall)
    send = partial(file_migration, hall.context, "web", target="beta", terms=Terms())
    with between(hall, "BEGIN IMMEDIATE", send) as filed:
        document = rebalance(hall.context)
    assert filed.result() > 0
    assert (document["batch"], hall.count(Migration)) == (None, 1)


def test_vm_that_a_user_moves_in_that_moment_is_left_to_him(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if nobody sees the promise."""
    hold(hall)
    monkeypatch.setattr(rebalancing, "newest_promise", lambda _: (0, 0))
    with between(hall, "BEGIN IMMEDIATE", partial(file_migration, hall.context, "db", target="gamma")):
        document = rebalance(hall.context)
    assert planned(document) == {"mail"}
    assert hall.count(Migration) == 2


def test_where_somebody_files_at_each_moment_the_last_plan_stands(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = count(100)
    monkeypatch.setattr(rebalancing, "newest_promise", lambda _: (next(numbers), 0))
    assert rebalance(hall.context)["batch"] == 1


def test_where_the_vms_move_at_each_moment_nothing_is_filed(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebalancing, "_wishes", lambda *_: None)
    with pytest.raises(Refused) as refused:
        rebalance(hall.context)
    assert refused.value.code == "rebalance_overtaken"
    assert (hall.count(Batch), hall.count(Migration)) == (0, 0)


@contextmanager
def while_moves_are_looked_for(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> Iterator[list[object]]:
    """Inside the block, `act` is done each time that moves have been found; what it gives."""
    given = list[object]()

    def found(cluster: Cluster, *, most: int) -> Rebalancing:
        moves = find_moves(cluster, most=most)
        given.append(act())
        return moves

    with monkeypatch.context() as patch:
        patch.setattr(rebalancing, "find_moves", found)
        yield given
    assert given, "nobody has looked for moves"


def test_no_transaction_is_open_while_moves_are_looked_for(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = hall.context.database.engine.pool
    with while_moves_are_looked_for(monkeypatch, pool.checkedout) as open_:  # type: ignore[attr-defined]
        plan_rebalance(hall.context)
        rebalance(hall.context)
    assert open_ == [0, 0]


def recover(world: World) -> None:
    world.change(Vm, Vm.name == "db", node_id=2, epoch=1)


def stop(world: World) -> None:
    with world.context.unit() as unit:
        vm = unit.session.scalars(select(Vm).where(Vm.name == "db")).one()
        file_operation(unit, vm, OperationKind.STOP, grace_s=1.0)


def keep(world: World) -> None:
    set_policy(world.context, "db", EvacuationPolicy.STAY)


def pause(world: World) -> None:
    world.change(Vm, Vm.name == "db", state=VmState.PAUSED)


@pytest.mark.parametrize("act", [recover, stop, keep, pause])
@pytest.mark.parametrize("late", [False, True])
def test_who_is_not_to_be_moved_any_more_is_not(
    hall: World, monkeypatch: pytest.MonkeyPatch, act: Callable[[World], None], late: bool
) -> None:
    """It happens while moves are looked for, or before they are written down."""
    hold(hall)
    meanwhile = partial(act, hall)
    once = [meanwhile]
    search = while_moves_are_looked_for(monkeypatch, lambda: once.pop()() if once else None)
    with between(hall, "BEGIN IMMEDIATE", meanwhile) if late else search:
        document = rebalance(hall.context)
    assert "mail" in planned(document) <= {"mail", "web"}
    with hall.context.database.read() as session:
        assert hall.vm("db").id not in session.scalars(select(Migration.vm_id)).all()


def test_target_that_takes_nothing_any_more_gets_nothing(hall: World) -> None:
    hold(hall)
    with between(hall, "BEGIN IMMEDIATE", partial(evacuations.evacuate, hall.context, "beta")):
        document = rebalance(hall.context, moves=1)
    assert [each["target"] for each in document["plan"]] == ["delta"]


def test_who_was_moved_meanwhile_is_no_part_of_a_plan(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with while_moves_are_looked_for(monkeypatch, partial(recover, hall)):
        assert "db" not in planned(plan_rebalance(hall.context))


def test_as_many_questions_for_many_vms_as_for_few(hall: World) -> None:
    with statements(hall) as few:
        assert len(plan_rebalance(hall.context, moves=100)["plan"]) == 2
    for number in range(20):
        hall.add_vm(f"more{number:02}", pinned={"ram_kib": 1 << 18})
    with statements(hall) as many:
        assert len(plan_rebalance(hall.context, moves=100)["plan"]) > 5
    assert len(many) == len(few)


def test_whoever_dies_after_the_commit_has_filed_all(hall: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rebalancing, "admit", lambda *_, **__: pytest.fail("died"))
        with pytest.raises(pytest.fail.Exception):
            rebalance(hall.context)
    assert [message.task for message in hall.sent] == ["haulier.admit"]
    play(hall)
    assert batches.show_batch(hall.context, 1)["state"] == "done"
    assert len(set(where(hall).values())) == 3


def test_move_that_fails_is_not_tried_again_and_counts_no_more(hall: World) -> None:
    set_limits(hall.context, [LimitChange(LimitScope.CLUSTER, (), 0)])
    rebalance(hall.context, moves=1)
    hall.change(Migration, state=MigrationState.UNDONE, finished_at=now())
    assert batches.show_batch(hall.context, 1)["counts"] == {"undone": 1}
    assert rebalance(hall.context, moves=1)["batch"] == 2


def test_batch_of_a_user_that_is_called_so_holds_nobody(hall: World) -> None:
    hold(hall)
    with hall.context.database.write() as session:
        session.add(Batch(key="mine", name="rebalance", forgiven=0, created_at=now()))
    file_migration(hall.context, "web", target="beta")
    hall.change(Migration, batch_id=1)
    assert rebalance(hall.context)["batch"] == 2


def test_moves_that_would_pay_and_are_refused_are_told(hall: World) -> None:
    """Else one would read that all is even."""
    with hall.context.database.write() as session:
        for vm in session.scalars(select(Vm)):
            place = {"storage": vm.volumes[0].storage, "name": "local/debian.iso", "format": "raw"}
            vm.volumes.append(Volume(device="ide3", role=VolumeRole.CDROM, size_bytes=1 << 20, **place))
    plan = plan_rebalance(hall.context)
    assert (plan["plan"], plan["state"]) == ([], "even")
    assert [(each["vm"], each["code"]) for each in plan["refused"]] == [
        ("db", "cdrom_local"),
        ("mail", "cdrom_local"),
        ("web", "cdrom_local"),
    ]
