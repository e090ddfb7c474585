"""A node that was declared lost is waited for by nobody; a VM goes on from its replica under a new epoch."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.errors import Refused
from haulier.services import chain, lost_nodes, recover, replications
from haulier.services.allocations import allocated_volumes
from haulier.services.lost_nodes import declare_lost
from haulier.services.nodes import NodeChange, beat, change_node, leave, register_node
from haulier.services.operations import take_back_operations
from haulier.services.replicas import old_files
from models import (
    Allocation,
    LedgerRole,
    Migration,
    MigrationState,
    Node,
    NodeState,
    Operation,
    OperationKind,
    OperationState,
    Phase,
    Replica,
    Replication,
    Storage,
    TpmLedger,
    Vm,
    VmState,
    Volume,
    VolumeRole,
)
from tests.unit.services.world import DIGEST, IDENTITY, Halves, World


def lose(world: World, name: str) -> None:
    world.silence(name)
    assert declare_lost(world.context, name, is_off=True)["state"] == "lost"


def node_state(world: World, name: str) -> NodeState:
    with world.context.database.read() as session:
        return session.scalars(select(Node.state).where(Node.name == name)).one()


def test_word_of_the_person_is_needed_and_a_silent_worker(world: World) -> None:
    with pytest.raises(Refused, match="node_alive"):
        declare_lost(world.context, "alpha", is_off=True)
    world.silence("alpha")
    with pytest.raises(Refused, match="not_confirmed"):
        declare_lost(world.context, "alpha", is_off=False)
    assert (node_state(world, "alpha"), world.vm().state) == (NodeState.ONLINE, VmState.RUNNING)


def test_worker_that_left_in_good_order_is_silent(world: World) -> None:
    with world.context.database.read() as session:
        node_id = session.scalars(select(Node.id).where(Node.name == "alpha")).one()
    leave(world.context, node_id)
    assert declare_lost(world.context, "alpha", is_off=True)["state"] == "lost"


def test_its_vms_are_lost_and_twice_is_as_once(world: World) -> None:
    for _ in range(2):
        lose(world, "alpha")
    vm = world.vm()
    assert (vm.state, vm.pid, vm.qmp) == (VmState.LOST, None, None)
    assert world.kinds("node.") == ["lost"]


@pytest.mark.parametrize("phase", [Phase.RESERVE, Phase.MIRROR_DISKS])
def test_migration_from_it_is_undone_by_the_target_alone(world: World, phase: Phase) -> None:
    world.file()
    world.complete(world.go(phase))
    world.sent.clear()
    lose(world, "alpha")
    for message in list(world.sent):
        assert message.queue == "node.beta"
    world.undo_all()
    assert world.state() == "undone"
    assert [problem["code"] for problem in world.migration().problems] == ["node_lost"]


def test_migration_to_it_is_undone_by_the_source_alone(world: World) -> None:
    world.file()
    world.complete(world.go(Phase.MIRROR_DISKS))
    world.sent.clear()
    lose(world, "beta")
    assert world.undo_all() == [Phase.MIRROR_DISKS, Phase.COPY_COLD, Phase.SYNC_TPM]
    assert (world.state(), world.vm().state) == ("undone", VmState.RUNNING)


def test_step_that_its_worker_still_has_in_hand_counts_no_more(world: World, halves: Halves) -> None:
    move, hand = halves
    lose(world, "alpha")
    assert not chain.complete(world.context, move, notes={})
    assert not world.commit(hand), "the source is given up, and so is the attempt"


def test_source_that_is_lost_after_the_hand_over_is_not_waited_for(world: World, halves: Halves) -> None:
    _, hand = halves
    world.reserve_tpm(world.view())
    assert world.commit(hand)
    lose(world, "alpha")
    assert world.state() == "handed_over"
    chain.complete(world.context, hand, notes={})
    assert (world.state(), world.vm().node.name) == ("done", "beta")


def test_target_that_is_lost_after_the_hand_over_is_for_a_person_to_decide(world: World, halves: Halves) -> None:
    """The source has the newest volumes there are; nothing removes them."""
    move, hand = halves
    world.reserve_tpm(world.view())
    assert world.commit(hand)
    chain.complete(world.context, move, notes={})
    lose(world, "beta")
    world.let_time_pass()
    world.sweep()
    assert (world.shown(), world.vm().state) == ("needs_operator", VmState.LOST)
    assert not any(message.task == f"haulier.{Phase.RETIRE_SOURCE}" for message in world.sent)


def test_what_was_declared_lost_and_comes_back_takes_nothing_new(world: World) -> None:
    lose(world, "alpha")
    register_node(world.context, "alpha", facts={}, images=Path("/alpha/images"))
    assert node_state(world, "alpha") is NodeState.MAINTENANCE


def add_replica(world: World, *, but: str = "", generation_of: dict[str, int] | None = None) -> None:
    """A whole replica of the VM on beta, of generation 3."""
    with world.context.database.write() as session:
        storage = session.scalars(select(Storage).where(Storage.path == "/beta/images")).one()
        replication = Replication(vm_id=1, target_id=storage.node_id, generation=3, every_s=60.0, created_at=now())
        session.add(replication)
        session.flush()
        for volume in session.scalars(select(Volume).where(Volume.device != but)):
            place = {"replication_id": replication.id, "volume_id": volume.id, "storage_id": storage.id}
            generation = (generation_of or {}).get(volume.device, 3)
            session.add(Replica(**place, name=f"{volume.name}.r", generation=generation, synced_at=now()))
        session.add(
            TpmLedger(vm_id=1, node_id=storage.node_id, path="/beta/images/web/tpm.raw.r", role=LedgerRole.RESERVED,
                      epoch=0, digest=DIGEST, identity=IDENTITY, changed_at=now())
        )  # fmt: skip


def beta(world: World) -> int:
    with world.context.database.read() as session:
        return session.scalars(select(Node.id).where(Node.name == "beta")).one()


def take_over(world: World) -> None:
    """As the worker of beta does it, that has taken the operation."""
    with world.context.database.write() as session:
        kind = OperationKind.RECOVER
        operation = Operation(
            node_id=beta(world), kind=kind, arguments={}, state=OperationState.RUNNING, created_at=now()
        )
        session.add(operation)
        session.flush()
        number = operation.id
    try:
        recover.take_over(world.context, 1, beta(world), operation_id=number)
    finally:
        world.change(Operation, state=OperationState.DONE)


def test_replica_becomes_the_vm(world: World) -> None:
    add_replica(world)
    lose(world, "alpha")
    found = recover.load_replica(world.context, 1, beta(world))
    assert (str(found.tpm), found.digest, found.identity) == ("/beta/images/web/tpm.raw.r", DIGEST, IDENTITY)
    take_over(world)
    vm = world.vm()
    assert (vm.node.name, vm.epoch, vm.state) == ("beta", 1, VmState.STOPPED)
    assert [volume.name for volume in vm.volumes] == ["web/disk.qcow2.r", "web/ci.raw.r", "web/tpm.raw.r"]
    assert [spec["name"] for spec in vm.definition["volumes"]] == [volume.name for volume in vm.volumes]
    assert sorted(world.ledger()) == [("alpha", "quarantined", 0), ("beta", "active", 1)]
    assert world.count(Replica) == 0
    with world.context.database.read() as session:
        (row,) = session.scalars(select(TpmLedger).where(TpmLedger.role == LedgerRole.QUARANTINED))
        assert row.keep_until is None, "nobody knows what was written to it last"
        (replication,) = session.scalars(select(Replication))
        assert replication.ended_at is not None
    with pytest.raises(Refused, match="node_not_lost"):
        take_over(world)


def test_node_that_is_back_in_time_keeps_its_vm(world: World) -> None:
    add_replica(world)
    lose(world, "alpha")
    world.change(Node, Node.name == "alpha", state=NodeState.MAINTENANCE)
    with pytest.raises(Refused, match="node_not_lost"):
        take_over(world)
    assert (world.vm().node.name, world.vm().epoch, world.count(Replica)) == ("alpha", 0, 3)


def codes(world: World) -> list[str]:
    with pytest.raises(Refused) as caught:
        recover.recover_vm(world.context, "web", on="beta")
    return [problem.code for problem in caught.value.problems]


def test_replica_that_is_not_whole(world: World) -> None:
    lose(world, "alpha")
    assert codes(world) == ["no_replica"]
    add_replica(world, but="scsi0")
    assert codes(world) == ["replica_incomplete"]
    with pytest.raises(Refused, match="replica_incomplete"):
        take_over(world)
    assert world.vm().node.name == "alpha"


def test_replica_of_two_moments(world: World) -> None:
    lose(world, "alpha")
    add_replica(world, generation_of={"tpmstate0": 2})
    assert codes(world) == ["replica_incomplete"]


def test_all_reasons_at_once(world: World) -> None:
    world.silence("beta")
    assert codes(world) == ["node_not_lost", "node_silent", "no_replica"]
    assert world.count(Operation) == 0


def test_operation_that_a_worker_left_is_over_when_it_begins_again(world: World) -> None:
    with world.context.database.write() as session:
        vm = session.scalars(select(Vm)).one()
        for node_id, state in ((vm.node_id, OperationState.RUNNING), (vm.node_id, OperationState.READY)):
            session.add(
                Operation(vm_id=None if state is OperationState.RUNNING else vm.id, node_id=node_id,
                          kind=OperationKind.START, arguments={}, state=state, created_at=now())
            )  # fmt: skip
    take_back_operations(world.context, "beta")
    take_back_operations(world.context, "alpha")
    with world.context.database.read() as session:
        assert [row.state for row in session.scalars(select(Operation))] == ["failed", "ready"]


def test_node_whose_worker_was_only_cut_off_comes_back_with_its_heartbeat(world: World) -> None:
    add_replica(world)
    lose(world, "alpha")
    with world.context.database.read() as session:
        alpha = session.scalars(select(Node.id).where(Node.name == "alpha")).one()
    beat(world.context, alpha)
    assert node_state(world, "alpha") is NodeState.MAINTENANCE
    world.change(Node, Node.name == "alpha", state=NodeState.LOST)
    with pytest.raises(Refused, match="node_not_lost"):
        take_over(world)


def test_old_volumes_of_a_source_that_is_lost_after_the_hand_over_are_found_again(world: World, halves: Halves) -> None:
    _, hand = halves
    world.reserve_tpm(world.view())
    assert world.commit(hand)
    lose(world, "alpha")
    view = world.view()
    left = {str(path) for path in allocated_volumes(world.context, view.attempt_id, view.source)}
    assert left == {f"/alpha/images/web/{name}" for name in ("disk.qcow2", "ci.raw", "tpm.raw")}


def test_replication_to_a_lost_node_can_be_ended(world: World) -> None:
    add_replica(world)
    lose(world, "beta")
    replications.end_replication(world.context, "web", target="beta")
    assert (world.count(Replica), replications.list_replications(world.context)) == (0, [])
    assert world.ledger() == [("alpha", "active", 0), ("beta", "destroyed", 0)]


def test_iso_image_of_the_lost_node_alone(world: World) -> None:
    add_replica(world)
    world.change(Volume, Volume.device == "ide2", role=VolumeRole.CDROM)
    lose(world, "alpha")
    assert codes(world) == ["cdrom_local"]


def test_only_its_own_worker_brings_a_lost_node_back(world: World) -> None:
    lose(world, "alpha")
    with pytest.raises(Refused, match="node_lost"):
        change_node(world.context, "alpha", NodeChange(maintenance=False))
    assert node_state(world, "alpha") is NodeState.LOST


def test_newest_copy_of_a_lost_vm_is_not_ended(world: World) -> None:
    add_replica(world)
    lose(world, "alpha")
    with pytest.raises(Refused, match="vm_lost"):
        replications.end_replication(world.context, "web", target="beta")
    assert world.count(Replica) == 3
    world.silence("alpha")
    found = declare_lost(world.context, "alpha", is_off=True)["lost_vms"]
    assert found == [{"vm": "web", "replicas_on": ["beta"], "lag_s": {}}]


def test_target_does_not_take_the_lost_sources_files_for_its_own(world: World, halves: Halves) -> None:
    """Storages may lie at the same path on both hosts: there the name is that of the VM's own disk."""
    _, hand = halves
    world.change(Storage, path="/srv/images")
    view = world.view()
    world.reserve_tpm(view)
    assert world.commit(hand, view)
    lose(world, "alpha")
    assert allocated_volumes(world.context, view.attempt_id, view.source)
    assert old_files(world.context, view) == []


def test_volumes_of_a_vm_stay_its_own_when_its_node_is_lost_in_a_sync(world: World) -> None:
    sync = replications.replicate(world.context, "web", target="beta", every_s=None)
    world.change(Migration, Migration.id == sync, state=MigrationState.HANDED_OVER)
    lose(world, "alpha")
    assert world.count(Allocation) == 0


@pytest.mark.parametrize("beats", [True, False])
@pytest.mark.parametrize("hours", [-48, 48])
def test_node_is_listened_to_before_it_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, hours: int, *, beats: bool
) -> None:
    """Its clock, or ours, may be wrong."""
    beat_at = now() + timedelta(hours=hours)
    world.change(Node, Node.name == "alpha", heartbeat_at=beat_at)
    times = iter([0.0, world.context.settings.node_silent_after_s])

    def passes() -> float:
        if (time := next(times)) and beats:
            world.change(Node, Node.name == "alpha", heartbeat_at=beat_at + timedelta(seconds=2))
        return time

    monkeypatch.setattr(lost_nodes, "steady_s", passes)
    if beats:
        with pytest.raises(Refused) as caught:
            lost_nodes.declare_lost(world.context, "alpha", is_off=True)
        assert caught.value.code == "node_alive"
    else:
        assert lost_nodes.declare_lost(world.context, "alpha", is_off=True)["state"] == "lost"
    assert world.vm().state is (VmState.RUNNING if beats else VmState.LOST)
