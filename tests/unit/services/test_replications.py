"""Replications: filed, taken as a whole, tried again later and later, given up for what is more urgent."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.errors import Refused
from haulier.services import chain, generations, replications, way
from haulier.services.claims import Claim
from haulier.services.generations import Arrived
from haulier.services.ledger import TpmCopy, reserve_copy
from haulier.services.migrations import explain
from haulier.services.replicas import old_files, overlays_of, record_merged
from haulier.services.surroundings import look_around
from haulier.services.transfers import plan_crossings
from models import (
    SYNC_CHAIN,
    Migration,
    Node,
    NodeState,
    Phase,
    Replica,
    Replication,
    Side,
    Storage,
    Vm,
    VmState,
    Volume,
)
from tests.unit.services.world import BROKEN, DIGEST, IDENTITY, LONG_AGO, World

LOOKS = {"ide2": {"bytes": 1}}
NOTES: dict[tuple[Phase, Side], dict[str, Any]] = {
    (Phase.CHECK, Side.SOURCE): {"unchanged": [], "looks": LOOKS},
    (Phase.SEND_GENERATION, Side.SOURCE): {"at": 1.0, "digest": DIGEST, "identity": IDENTITY},
}


def ask(world: World, *, every_s: float | None = None) -> int:
    return replications.replicate(world.context, "web", target="beta", every_s=every_s)


def shown(world: World) -> dict[str, object]:
    (only,) = replications.list_replications(world.context)
    return only


def rows(world: World) -> dict[str, Replica]:
    with world.context.database.read() as session:
        return {replica.volume.device: replica for replica in session.scalars(select(Replica))}


def until_taken(world: World, *, generation: int, unchanged: tuple[str, ...] = ()) -> Claim:
    """All of a sync has been done but its last step, which is held."""
    for rule in SYNC_CHAIN[:-1]:
        held = world.take()
        assert (held.phase, held.side) == (rule.phase, rule.side)
        notes: dict[str, Any] = {**NOTES.get((rule.phase, rule.side), {})}
        if rule.side is Side.CONTROL:
            notes["generation"] = generation
        elif rule.phase is Phase.CHECK and rule.side is Side.SOURCE:
            notes["unchanged"] = list(unchanged)
        if rule.phase is Phase.RESERVE:
            view = world.view(held.attempt_id)
            assert view.tpm
            reserve_copy(world.context, TpmCopy(view.vm_id, view.target.id, view.tpm.target_path), epoch=view.epoch)
        chain.complete(world.context, held, notes=notes)
    return world.take()


def commit(world: World, held: Claim, *, generation: int) -> bool:
    found = Arrived(generation, now().timestamp(), DIGEST, IDENTITY, LOOKS)
    return generations.commit_generation(world.context, held, world.view(held.attempt_id), found)


def bring(world: World, *, generation: int, unchanged: tuple[str, ...] = ()) -> int:
    """One whole sync; its number."""
    sync = ask(world)
    held = until_taken(world, generation=generation, unchanged=unchanged)
    assert commit(world, held, generation=generation)
    for overlay in overlays_of(world.context, 1):
        record_merged(world.context, overlay)
    chain.complete(world.context, held, notes={})
    return sync


def test_all_volumes_reach_a_generation_together(world: World) -> None:
    ask(world)
    held = until_taken(world, generation=1)
    assert rows(world) == {}
    assert commit(world, held, generation=1)
    found = rows(world)
    assert {device: (row.name, row.overlay, row.generation) for device, row in found.items()} == {
        "scsi0": ("web/disk.qcow2", "web/disk.qcow2.m1", 1),
        "ide2": ("web/ci.m1.raw", None, 1),
        "tpmstate0": ("web/tpm.m1.raw", None, 1),
    }
    assert found["ide2"].seen == LOOKS["ide2"]
    assert world.ledger() == [("alpha", "active", 0), ("beta", "reserved", 0)]
    assert world.state() == "handed_over"
    chain.complete(world.context, held, notes={})
    assert (world.state(), shown(world)["state"], shown(world)["generation"]) == ("done", "current", 1)
    assert world.kinds("sync.") == ["queued", "running", "handed_over", "done"], "no migration's events"


def test_second_generation_takes_the_first_ones_place(world: World) -> None:
    bring(world, generation=1)
    ask(world)
    held = until_taken(world, generation=2, unchanged=("ide2",))
    view = world.view(held.attempt_id)
    assert view.transfers[0].base_path == Path("/beta/images/web/disk.qcow2")
    assert commit(world, held, generation=2)
    found = rows(world)
    assert {row.generation for row in found.values()} == {2}
    assert (found["ide2"].name, found["tpmstate0"].name) == ("web/ci.m1.raw", "web/tpm.m2.raw")
    assert old_files(world.context, view) == [Path("/beta/images/web/tpm.m1.raw")]
    (overlay,) = overlays_of(world.context, 1)
    for _ in range(2):
        record_merged(world.context, overlay)
    assert overlays_of(world.context, 1) == []


def test_sync_that_is_cancelled_takes_nothing(world: World) -> None:
    bring(world, generation=1)
    sync = ask(world)
    held = until_taken(world, generation=2)
    world.change(Migration, Migration.id == sync, cancel_asked=True)
    assert not commit(world, held, generation=2)
    assert {row.generation for row in rows(world).values()} == {1}
    assert shown(world)["generation"] == 1


def test_worker_that_was_thought_dead_takes_nothing(world: World) -> None:
    ask(world)
    held = until_taken(world, generation=1)
    world.let_lease_end(held)
    world.sweep()
    assert not commit(world, held, generation=1)
    assert (rows(world), shown(world)["generation"]) == ({}, 0)


def test_asked_for_twice_is_one_and_changes_how_often(world: World) -> None:
    first = ask(world, every_s=900)
    assert ask(world) == first
    assert shown(world)["every_s"] == 900
    assert ask(world, every_s=60) == first
    assert (shown(world)["every_s"], world.count(Replication)) == (60, 1)


def sweep(world: World) -> None:
    replications.sweep_replications(world.context)


def test_next_one_is_due_when_its_time_has_come(world: World) -> None:
    ask(world, every_s=900)
    sweep(world)
    assert shown(world)["due_at"] is None, "one is under way"
    held = until_taken(world, generation=1)
    assert commit(world, held, generation=1)
    chain.complete(world.context, held, notes={})
    sweep(world)
    assert shown(world)["due_at"] is not None
    assert shown(world)["sync"] == 1
    world.change(Replication, due_at=now() - timedelta(seconds=1))
    sweep(world)
    assert (shown(world)["sync"], shown(world)["state"]) == (2, "syncing")


def test_failure_is_told_and_tried_again_later_each_time(world: World) -> None:
    ask(world, every_s=900)
    waits = []
    for failures in (1, 2, 3):
        chain.fail(world.context, world.take(), (BROKEN,), outcome=chain.Outcome.REFUSED)
        assert shown(world)["state"] == "failed"
        sweep(world)
        document = shown(world)
        assert document["failures"] == failures
        with world.context.database.read() as session:
            (row,) = session.scalars(select(Replication))
            assert row.due_at
            waits.append((row.due_at - now()).total_seconds())
        sweep(world)
        assert shown(world)["failures"] == failures, "counted once"
        world.change(Replication, due_at=now() - timedelta(seconds=1))
        sweep(world)
    assert waits[0] < waits[1] < waits[2]
    assert world.kinds("replication.") == ["asked_for", "failed", "failed", "failed"]


def test_refused_sync_is_a_failure_with_its_reason(world: World) -> None:
    ask(world, every_s=900)
    chain.fail(world.context, world.take(), (BROKEN,), outcome=chain.Outcome.REFUSED)
    sweep(world)
    world.silence("beta")
    world.change(Replication, due_at=now() - LONG_AGO)
    sweep(world)
    assert (shown(world)["failures"], shown(world)["sync"]) == (2, 1)
    why = shown(world)["error"]
    assert isinstance(why, dict) and why["code"] == "node_silent", "also of one that could not be filed"


def test_replication_of_a_vm_that_is_busy_waits(world: World) -> None:
    bring(world, generation=1)
    world.change(Replication, every_s=60.0, due_at=now() - LONG_AGO)
    world.file()
    sweep(world)
    assert (shown(world)["sync"], shown(world)["failures"]) == (1, 0)


@pytest.mark.parametrize(
    ("every_s", "code"), [(0.0, "bad_every"), (-1.0, "bad_every"), (float("nan"), "bad_every"), (1e12, "bad_every")]
)
def test_interval_that_is_none(world: World, every_s: float, code: str) -> None:
    with pytest.raises(Refused, match=code):
        ask(world, every_s=every_s)
    assert world.count(Replication) == 0


def test_node_in_maintenance_gets_no_replica(world: World) -> None:
    world.change(Node, Node.name == "beta", state=NodeState.MAINTENANCE)
    with pytest.raises(Refused, match="node_in_maintenance"):
        ask(world)
    assert world.count(Replication) == 0


def test_names_of_a_replica_are_nobody_elses(world: World) -> None:
    bring(world, generation=1)
    ask(world)
    until_taken(world, generation=2)
    world.add_vm("other", state=VmState.STOPPED)
    with world.context.database.read() as session:
        vm = session.scalars(select(Vm).where(Vm.name == "other")).one()
        beta = session.scalars(select(Node).where(Node.name == "beta")).one()
        there = look_around(session, [vm], [beta])
        assert not any(each.name_is_taken for each in plan_crossings(there, vm, beta, offline=True, storage_map={}))


def test_beat_does_not_come_between_who_wants_the_vm_and_the_vm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(world, every_s=60)
    monkeypatch.setattr(way, "_PATIENCE_S", 0.0)
    way.make_way(world.context, "web")
    chain.fail(world.context, world.take(), (BROKEN,))
    assert world.state() == "cancelled"
    sweep(world)
    assert shown(world)["sync"] == 1, "not before the truce is over"
    assert (shown(world)["state"], shown(world)["error"]) == ("new", None), "to make way is no failure"
    world.change(Replication, due_at=now() - timedelta(seconds=1))
    sweep(world)
    assert (shown(world)["sync"], shown(world)["failures"]) == (2, 0)


def test_silent_target_does_not_keep_the_vm(world: World) -> None:
    """Nobody's guest is there; what the sync has left is found when the node is back."""
    ask(world)
    for rule in SYNC_CHAIN[:4]:
        chain.complete(world.context, world.take(), notes={**NOTES.get((rule.phase, rule.side), {}), "generation": 1})
    sending = world.take()
    chain.fail(world.context, sending, (BROKEN,))
    chain.complete_undo(world.context, world.take())
    world.sent.clear()
    world.silence("beta")
    world.let_time_pass()
    world.sweep()
    assert (world.state(), shown(world)["state"]) == ("undone", "failed")


def test_silent_target_after_the_commit_does_not_keep_the_vm_either(world: World) -> None:
    """Base and overlay together are the replica until somebody merges them."""
    ask(world)
    held = until_taken(world, generation=1)
    assert commit(world, held, generation=1)
    world.let_lease_end(held)
    world.sweep()
    world.silence("beta")
    world.let_time_pass()
    world.sweep()
    assert (world.state(), shown(world)["generation"]) == ("done", 1)
    assert len(overlays_of(world.context, 1)) == 1


def test_merge_that_fails_for_long_does_not_keep_the_vm(world: World) -> None:
    ask(world)
    held = until_taken(world, generation=1)
    assert commit(world, held, generation=1)
    for _ in range(40):
        chain.fail(world.context, held, (BROKEN,))
        if world.state() == "done":
            break
        world.let_time_pass()
        world.sweep()
        held = world.take()
    assert (world.state(), len(overlays_of(world.context, 1))) == ("done", 1)
    assert not world.migration().needs_operator


def test_replica_of_a_volume_that_is_shared_by_now_goes(world: World) -> None:
    bring(world, generation=1)
    world.change(Storage, Storage.path == "/alpha/images", shared=True)
    world.change(Volume, Volume.device == "ide2", storage_id=1)
    with world.context.database.write() as session:
        own = Storage(node_id=1, name="local2", kind="folder", path="/alpha/two")
        there = Storage(node_id=2, name="local2", kind="folder", path="/beta/two")
        session.add_all([own, there])
        session.flush()
        for volume in session.scalars(select(Volume).where(Volume.device != "ide2")):
            volume.storage_id = own.id
    ask(world)
    held = until_taken(world, generation=2)
    assert commit(world, held, generation=2)
    assert set(rows(world)) == {"scsi0", "tpmstate0"}


def test_explain_knows_that_a_sync_makes_way(world: World) -> None:
    ask(world)
    assert explain(world.context, "web", target="beta")["refusals"] == []
