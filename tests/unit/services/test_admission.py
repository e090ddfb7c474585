"""Migrations wait until the limits leave room, and are begun in the queue's order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.errors import HaulierError, Refused
from haulier.planner.admission import AGE_S
from haulier.services import admission, migrations
from haulier.services.admission import admit
from haulier.services.context import CONTROL_QUEUE, Message
from haulier.services.filing import Terms
from haulier.services.limits import LimitChange, set_limits, show_limits
from haulier.services.lost_nodes import declare_lost
from haulier.services.nodes import NodeChange, change_node, register_node, show_node
from haulier.services.operations import end_operation, file_operation, take_operation
from haulier.services.queue import list_queue, set_priority
from haulier.services.replications import replicate, sweep_replications
from models import (
    Attempt,
    LimitScope,
    Migration,
    Node,
    NodeState,
    OperationKind,
    OperationState,
    Storage,
    Vm,
    VmState,
    VolumeTransfer,
)
from tasks import reconcile
from tests.unit.services.world import World, between, neighbour, per_commit

CONTRACT = {"id", "vm", "priority", "position", "waiting_for"}


def limit(world: World, scope: LimitScope, *nodes: str, allowed: int | None) -> None:
    set_limits(world.context, [LimitChange(scope, nodes, allowed)])


def queue_up(world: World, *names: str, priority: int = 50) -> list[int]:
    """Migrations of these VMs are filed."""
    for name in names:
        if name != "web":
            world.add_vm(name)
    terms = Terms(priority=priority)
    return [migrations.file_migration(world.context, name, target="beta", terms=terms) for name in names]


def states(world: World) -> list[str]:
    with world.context.database.read() as session:
        return [str(state) for state in session.scalars(select(Migration.state).order_by(Migration.id))]


def holds(world: World) -> list[tuple[int, str, str]]:
    """Who waits, for what."""
    return [
        (each["id"], each["waiting_for"]["limit"], each["waiting_for"]["text"]) for each in list_queue(world.context)
    ]


def end(world: World, migration_id: int) -> None:
    """A migration that is at work ends as refused."""
    claims = [world.claim(message) for message in world.sent if message.task != "haulier.admit"]
    world.sent.clear()
    world.fail(next(held for held in claims if held and held.migration_id == migration_id))


def admits(world: World) -> list[Message]:
    return [message for message in world.sent if message.task == "haulier.admit"]


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_one_that_waits_is_a_wish_and_nothing_more(world: World) -> None:
    limit(world, LimitScope.OUT, "alpha", allowed=1)
    queue_up(world, "web", "db")
    assert states(world) == ["running", "queued"]
    assert (world.count(Attempt), world.count(VolumeTransfer)) == (1, 3)
    assert [message.task for message in world.sent] == ["haulier.check"]
    assert holds(world) == [(2, "out", "1 leave alpha, 1 may")]
    document = migrations.show_migration(world.context, 2)
    assert (document["state"], document["attempt"], document["phases"], document["volumes"]) == ("queued", 0, [], [])
    assert document["waiting_for"] == list_queue(world.context)[0]["waiting_for"]
    assert migrations.is_past_check(document), "whoever files does not wait for its turn"
    assert migrations.list_migrations(world.context)[0]["waiting_for"]["in_use"] == 1


def test_queue_is_shown_as_the_contract_says(world: World) -> None:
    limit(world, LimitScope.IN, "beta", allowed=0)
    queue_up(world, "web", "db")
    documents = list_queue(world.context)
    assert all(set(each) >= CONTRACT for each in documents)
    assert [(each["position"], each["vm"], each["source"], each["target"]) for each in documents] == [
        (1, "web", "alpha", "beta"),
        (2, "db", "alpha", "beta"),
    ]
    assert documents[0]["waiting_for"] == {
        "limit": "in", "in_use": 0, "allowed": 0, "text": "none may go to beta: the limit is 0",
    }  # fmt: skip
    json.dumps(documents)


def test_end_of_one_makes_room_for_the_next(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=1)
    queue_up(world, "web", "db", "ci")
    assert states(world) == ["running", "queued", "queued"]
    end(world, 1)
    assert [message.queue for message in admits(world)] == [CONTROL_QUEUE]
    admit(world.context)
    assert states(world) == ["undone", "running", "queued"]
    assert world.picture(2) == "r.........."
    assert world.kinds() == ["queued"] + ["running"] + ["queued"] * 2 + ["rolling_back", "undone", "running"]


def test_beat_begins_what_nobody_was_told_of(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever filed it died after the commit, or the message of who made room was lost."""
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    limit(world, LimitScope.CLUSTER, allowed=None)
    world.sent.clear()
    monkeypatch.setattr(reconcile, "context", lambda: world.context)
    reconcile.reconcile()
    (message,) = admits(world)
    reconcile.admit(message.row)
    assert states(world) == ["running"]


def test_nobody_is_told_when_nothing_waits(world: World) -> None:
    world.file()
    end(world, 1)
    assert (world.state(), world.sent) == ("undone", [])


def test_order_is_that_of_filing_but_for_priority(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web", "db")
    queue_up(world, "ci", priority=51)
    queue_up(world, "log", priority=20)
    assert [each["vm"] for each in list_queue(world.context)] == ["ci", "web", "db", "log"]
    for expected in ("ci", "web", "db", "log"):
        limit(world, LimitScope.CLUSTER, allowed=states(world).count("running") + 1)
        admit(world.context)
        assert migrations.list_migrations(world.context)
        with world.context.database.read() as session:
            last = session.scalars(select(Migration).join(Attempt).order_by(Attempt.id.desc())).first()
            assert last is not None
            assert last.vm.name == expected


def test_a_point_of_priority_is_worth_a_minute(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web", priority=20)
    queue_up(world, "db", priority=50)
    world.change(Migration, Migration.id == 1, rank=Migration.rank - 29 * AGE_S)
    assert [each["vm"] for each in list_queue(world.context)] == ["db", "web"]
    world.change(Migration, Migration.id == 1, rank=Migration.rank - 2 * AGE_S)
    assert [each["vm"] for each in list_queue(world.context)] == ["web", "db"]


def test_priority_is_changed_while_it_waits(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web", "db")
    shown = set_priority(world.context, 2, 51)
    assert (shown["position"], shown["priority"], shown["waiting_for"]["limit"]) == (1, 51, "cluster")
    set_priority(world.context, 2, 50)
    assert [each["vm"] for each in list_queue(world.context)] == ["web", "db"], "back where it was"
    limit(world, LimitScope.CLUSTER, allowed=None)
    admit(world.context)
    with pytest.raises(HaulierError) as caught:
        set_priority(world.context, 2, 60)
    assert (caught.value.code, world.migration(2).priority) == ("not_waiting", 50)


def test_many_are_begun_some_at_a_time(world: World) -> None:
    """A long transaction would keep the commit of a hand-over waiting."""
    limit(world, LimitScope.CLUSTER, allowed=0)
    for scope, node in ((LimitScope.OUT, "alpha"), (LimitScope.IN, "beta")):
        limit(world, scope, node, allowed=100)
    queue_up(world, *(f"vm{number}" for number in range(11)))
    limit(world, LimitScope.CLUSTER, allowed=10)
    with per_commit(world, lambda sql, _: sql.startswith("INSERT INTO attempt ")) as begun:
        admit(world.context)
    assert (sum(begun), max(begun)) == (10, 4)
    assert states(world) == ["running"] * 10 + ["queued"]


def test_whoever_is_held_lets_others_by(world: World) -> None:
    add_node(world, "gamma")
    limit(world, LimitScope.IN, "beta", allowed=0)
    queue_up(world, "web")
    world.add_vm("db")
    migrations.file_migration(world.context, "db", target="gamma")
    assert states(world) == ["queued", "running"]
    limit(world, LimitScope.PAIR, "alpha", "gamma", allowed=1)
    world.add_vm("ci")
    migrations.file_migration(world.context, "ci", target="gamma")
    assert holds(world) == [
        (1, "in", "none may go to beta: the limit is 0"),
        (3, "pair", "1 go from alpha to gamma, 1 may"),
    ]


def test_far_down_the_queue_somebody_can_go(world: World) -> None:
    """Beyond the oldest that are always looked at, and beyond a whole portion of the others."""
    add_node(world, "gamma")
    limit(world, LimitScope.IN, "beta", allowed=0)
    limit(world, LimitScope.PAIR, "alpha", "gamma", allowed=0)
    with world.context.unit() as unit:
        session = unit.session
        nodes = {node.name: node for node in session.scalars(select(Node))}
        for number in range(150):
            vm = Vm(name=f"n{number}", node=nodes["alpha"], definition={"name": f"n{number}"}, created_at=now())
            target = nodes["gamma" if number % 2 else "beta"]
            session.add(
                Migration(vm=vm, source=vm.node, target=target, epoch=0, rank=number, created_at=now(), problems=[])
            )
    world.add_vm("last")
    limit(world, LimitScope.PAIR, "alpha", "gamma", allowed=None)
    limit(world, LimitScope.IN, "gamma", allowed=0)
    add_node(world, "delta")
    migration = migrations.file_migration(world.context, "last", target="delta")
    assert world.state(migration) == "running"


# -- what may be done meanwhile ---------------------------------------------------------------------------------------


def test_vm_that_waits_is_free(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    sync = replicate(world.context, "web", target="beta", every_s=None)
    assert states(world) == ["queued", "running"]
    assert world.migration(sync).replication_id is not None


def test_vm_that_waits_has_no_second_wish(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    with pytest.raises(HaulierError, match="already in migration 1") as caught:
        world.file()
    assert caught.value.code == "migration_open"
    assert states(world) == ["queued"]


def test_two_that_file_at_one_moment(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    with neighbour(world) as other, between(world, "INSERT INTO migration", other.file) as theirs:
        world.file()
    assert theirs.exception() is not None
    assert states(world) == ["queued"]


def test_cancelled_while_it_waits(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    assert migrations.cancel_migration(world.context, 1)["state"] == "cancelled"
    limit(world, LimitScope.CLUSTER, allowed=None)
    admit(world.context)
    assert (states(world), world.count(Attempt)) == (["cancelled"], 0)
    assert world.kinds() == ["queued", "cancelled"]
    assert migrations.retry_migration(world.context, 1) == 2


def test_stopped_while_it_waits(world: World) -> None:
    """What can never begin is refused when its turn comes, and its room is the next one's."""
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web", "db")
    world.change(Vm, Vm.name == "web", state=VmState.STOPPED)
    limit(world, LimitScope.CLUSTER, allowed=1)
    admit(world.context)
    assert states(world) == ["refused", "running"]
    assert migrations.show_migration(world.context, 1)["error"]["code"] == "vm_not_running"
    assert world.migration(1).finished_at is not None


def test_one_that_cannot_even_be_planned_holds_nobody(world: World) -> None:
    """A defect, or a row that somebody has spoilt, at the head of the queue."""
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web", "db")
    world.change(Vm, Vm.name == "web", definition={})
    limit(world, LimitScope.CLUSTER, allowed=None)
    admit(world.context)
    assert states(world) == ["refused", "running"]
    error = migrations.show_migration(world.context, 1)["error"]
    assert (error["code"], error["message"][:8]) == ("unexpected", "KeyError")


def test_one_that_breaks_when_it_has_begun_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    limit(world, LimitScope.CLUSTER, allowed=None)
    world.sent.clear()

    def broken(*_: object) -> None:
        raise Refused("storage_missing", "gone in this moment", "Look.")

    monkeypatch.setattr(admission, "file_transfers", broken)
    admit(world.context)
    assert (states(world), world.count(Attempt), world.sent) == (["refused"], 0, [])
    assert migrations.show_migration(world.context, 1)["error"]["code"] == "storage_missing"


def test_storage_that_is_gone_when_its_turn_comes(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    world.change(Storage, Storage.path == "/beta/images", name="other")
    limit(world, LimitScope.CLUSTER, allowed=None)
    admit(world.context)
    assert (states(world), world.count(Attempt)) == (["refused"], 0)


def test_node_is_silent_for_a_while(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    limit(world, LimitScope.CLUSTER, allowed=None)
    world.silence("beta")
    admit(world.context)
    ((_, what, text),) = holds(world)
    assert (states(world), what) == (["queued"], "node")
    assert "beta" in text
    world.sent.clear()
    register_node(world.context, "beta", facts={}, images=Path("/beta/images"))
    assert len(admits(world)) == 1
    admit(world.context)
    assert states(world) == ["running"]


def test_node_in_maintenance_is_waited_for(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    change_node(world.context, "beta", NodeChange(maintenance=True))
    limit(world, LimitScope.CLUSTER, allowed=None)
    admit(world.context)
    assert holds(world) == [(1, "node", "node beta is in maintenance")]
    world.sent.clear()
    change_node(world.context, "beta", NodeChange(maintenance=False))
    assert len(admits(world)) == 1
    admit(world.context)
    assert states(world) == ["running"]


def test_target_that_is_lost_is_not_waited_for(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    world.change(Node, Node.name == "beta", state=NodeState.LOST)
    limit(world, LimitScope.CLUSTER, allowed=None)
    admit(world.context)
    assert states(world) == ["refused"]
    assert migrations.show_migration(world.context, 1)["error"]["code"] == "node_lost"


def test_work_on_the_vm_is_waited_for(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    with world.context.unit() as unit:
        vm = unit.session.scalars(select(Vm)).one()
        operation = file_operation(unit, vm, OperationKind.STOP, grace_s=1.0).id
    limit(world, LimitScope.CLUSTER, allowed=None)
    admit(world.context)
    assert holds(world) == [(1, "vm", "VM web is busy: stop is not over")]
    assert take_operation(world.context, operation) is not None
    world.sent.clear()
    with world.context.unit() as unit:
        end_operation(unit, operation, OperationState.FAILED)
    assert len(admits(world)) == 1
    admit(world.context)
    assert states(world) == ["running"]


def test_sync_makes_way_when_the_turn_has_come_and_not_before(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    sync = replicate(world.context, "web", target="beta", every_s=900)
    admit(world.context)
    assert not world.migration(sync).cancel_asked, "there is no room yet"
    limit(world, LimitScope.CLUSTER, allowed=None)
    admit(world.context)
    assert world.migration(sync).cancel_asked
    assert holds(world) == [(1, "vm", f"sync {sync} of web makes way")]
    (check,) = [message for message in world.sent if message.task == "haulier.check"]
    held = world.claim(check)
    assert held is not None
    world.sent.clear()
    world.complete(held)
    assert (world.state(sync), len(admits(world))) == ("cancelled", 1)
    sweep_replications(world.context)
    admit(world.context)
    assert states(world) == ["running", "cancelled"]


def test_vm_that_was_recovered_elsewhere(world: World) -> None:
    add_node(world, "gamma")
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    with world.context.database.write() as session:
        vm = session.scalars(select(Vm)).one()
        gamma = session.scalars(select(Node).where(Node.name == "gamma")).one()
        vm.node, vm.epoch = gamma, 4
        for volume in vm.volumes:
            volume.storage = gamma.storages[0]
    limit(world, LimitScope.OUT, "gamma", allowed=0)
    limit(world, LimitScope.CLUSTER, allowed=None)
    admit(world.context)
    assert holds(world) == [(1, "out", "none may leave gamma: the limit is 0")]
    limit(world, LimitScope.OUT, "gamma", allowed=1)
    admit(world.context)
    assert (world.state(), world.migration().epoch) == ("running", 4)
    assert {transfer.source_storage for transfer in world.view().transfers} == {"local"}
    assert world.view().source.name == "gamma"


@pytest.mark.parametrize("on", ["alpha", "beta", "gamma"])
def test_source_is_lost_while_it_waits(world: World, on: str) -> None:
    """The VM is lost with it, was recovered on its target, or on a third node, from where it goes on."""
    add_node(world, "gamma")
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    limit(world, LimitScope.CLUSTER, allowed=None)
    world.silence("alpha")
    declare_lost(world.context, "alpha", is_off=True)
    if on != "alpha":
        with world.context.database.write() as session:
            vm = session.scalars(select(Vm)).one()
            vm.node, vm.state = session.scalars(select(Node).where(Node.name == on)).one(), VmState.RUNNING
            for volume in vm.volumes:
                volume.storage = vm.node.storages[0]
    admit(world.context)
    document = migrations.show_migration(world.context, 1)
    code = {"alpha": "node_lost", "beta": "already_there", "gamma": None}[on]
    assert (document["state"], document["error"] and document["error"]["code"]) == (
        "refused" if code else "running", code,
    )  # fmt: skip


def test_vm_that_came_there_by_itself(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "web")
    with world.context.database.write() as session:
        vm = session.scalars(select(Vm)).one()
        vm.node_id = session.scalars(select(Node.id).where(Node.name == "beta")).one()
    limit(world, LimitScope.CLUSTER, allowed=None)
    admit(world.context)
    assert migrations.show_migration(world.context, 1)["error"]["code"] == "already_there"


# -- limits -----------------------------------------------------------------------------------------------------------


def test_limits_are_shown_and_go_back_to_the_usual(world: World) -> None:
    usual = show_limits(world.context)
    assert usual == {
        "prepare": {"cluster": 64, "usual": {"out": 4, "in": 4, "pair": 64}, "out": {}, "in": {}, "pair": []},
        "move": {"cluster": 16, "usual": {"out": 2, "in": 2, "pair": None}, "out": {}, "in": {}, "pair": []},
        "bandwidth": {
            "cluster": None,
            "usual": {"out": None, "in": None, "pair": None},
            "out": {},
            "in": {},
            "pair": [],
        },
        "labels": [],
    }
    limit(world, LimitScope.CLUSTER, allowed=3)
    limit(world, LimitScope.OUT, "alpha", allowed=2)
    limit(world, LimitScope.OUT, "alpha", allowed=1)
    limit(world, LimitScope.IN, "alpha", allowed=0)
    limit(world, LimitScope.PAIR, "alpha", "beta", allowed=5)
    changed = show_limits(world.context)
    assert changed["move"] == usual["move"]
    assert [changed["prepare"][key] for key in ("cluster", "out", "in")] == [3, {"alpha": 1}, {"alpha": 0}]
    assert changed["prepare"]["pair"] == [{"source": "alpha", "target": "beta", "max": 5}]
    shown = show_node(world.context, "alpha")
    assert [shown[f"max_{name}"] for name in ("out", "in", "moves_out", "moves_in")] == [1, 0, 2, 2]
    for scope, nodes in (
        (LimitScope.CLUSTER, ()),
        (LimitScope.OUT, ("alpha",)),
        (LimitScope.IN, ("alpha",)),
        (LimitScope.PAIR, ("alpha", "beta")),
    ):
        limit(world, scope, *nodes, allowed=None)
    assert show_limits(world.context) == usual


def test_limit_that_is_raised_lets_somebody_in(world: World) -> None:
    limit(world, LimitScope.OUT, "alpha", allowed=0)
    queue_up(world, "web")
    world.sent.clear()
    change_node(world.context, "alpha", NodeChange(limits=(LimitChange(LimitScope.OUT, ("alpha",), 1),)))
    assert len(admits(world)) == 1
    admit(world.context)
    assert states(world) == ["running"]


def test_limit_that_is_lowered_ends_nothing(world: World) -> None:
    queue_up(world, "web", "db")
    limit(world, LimitScope.CLUSTER, allowed=0)
    queue_up(world, "ci")
    assert states(world) == ["running", "running", "queued"]
    assert holds(world) == [(3, "cluster", "none may be at work in the cluster: the limit is 0; 2 are left")]


def test_syncs_take_no_room(world: World) -> None:
    limit(world, LimitScope.CLUSTER, allowed=1)
    replicate(world.context, "web", target="beta", every_s=None)
    queue_up(world, "db")
    assert states(world) == ["running", "running"]


@pytest.mark.parametrize("allowed", [-1, 1_000_001])
def test_limit_that_is_none(world: World, allowed: int) -> None:
    with pytest.raises(HaulierError) as caught:
        limit(world, LimitScope.CLUSTER, allowed=allowed)
    assert caught.value.code == "bad_limit"


def test_unknown_node_changes_no_limit(world: World) -> None:
    changes = [LimitChange(LimitScope.OUT, ("alpha",), 1), LimitChange(LimitScope.PAIR, ("alpha", "bet"), 1)]
    with pytest.raises(HaulierError) as caught:
        set_limits(world.context, changes)
    assert (caught.value.code, show_limits(world.context)["prepare"]["out"]) == ("unknown_node", {})


@pytest.mark.parametrize("priority", [-1_000_001, 1_000_001])
def test_priority_that_is_none(priority: int) -> None:
    with pytest.raises(HaulierError) as caught:
        Terms(priority=priority)
    assert caught.value.code == "bad_priority"


# -- helpers ----------------------------------------------------------------------------------------------------------


def add_node(world: World, name: str) -> None:
    with world.context.database.write() as session:
        node = Node(name=name, address="10.0.0.7", port_first=1, port_last=9, heartbeat_at=now(), facts={})
        node.storages.append(Storage(name="local", kind="folder", path=f"/{name}/images"))
        session.add(node)
