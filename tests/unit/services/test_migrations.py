"""Migrations as people see them: explained, filed, shown, cancelled, filed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from haulier.clock import now
from haulier.errors import HaulierError
from haulier.services import chain, migrations
from haulier.services.attempts import Turn
from haulier.services.filing import Terms
from haulier.services.transfers import read_storage_map
from models import (
    LIVE_CHAIN,
    Migration,
    MigrationState,
    Node,
    NodeState,
    Phase,
    Replica,
    Replication,
    Side,
    Step,
    Storage,
    Vm,
    VmState,
    Volume,
    VolumeRole,
    VolumeTransfer,
)
from tests.unit.services.world import Halves, World

CONTRACT = {
    "id", "vm", "source", "target", "state", "phases", "volumes", "downtime_ms", "total_s", "ram_bytes", "tpm",
    "attempt", "error",
}  # fmt: skip
PHASE_KEYS = {"name", "state", "node", "seconds"}
VOLUME_KEYS = {"device", "role", "method", "bytes", "seconds"}
STATES = {"queued", "running", "done", "undone", "refused", "cancelled", "needs_operator"}


def code_of(act: Callable[[], object]) -> str:
    try:
        act()
    except HaulierError as error:
        return error.code
    return "nothing"


def explain(world: World, vm: str = "web", target: str = "beta") -> dict[str, Any]:
    return migrations.explain(world.context, vm, target=target)


# -- explain ----------------------------------------------------------------------------------------------------------


def test_explain_tells_each_volume_and_touches_nothing(world: World) -> None:
    document = explain(world)
    assert [(each["device"], each["role"], each["method"]) for each in document["volumes"]] == [
        ("scsi0", "disk", "mirror"),
        ("ide2", "cloudinit", "copy"),
        ("tpmstate0", "tpmstate", "tpm_sync"),
    ]
    assert all(each["reason"] and each["method"] for each in document["volumes"])
    assert {(each["storage"], each["target_storage"]) for each in document["volumes"]} == {("local", "local")}
    assert document["refusals"] == []
    assert document["phases"] == list(dict.fromkeys(rule.phase.value for rule in LIVE_CHAIN))
    assert document["estimate_s"] > 2
    world.context.settings.max_bandwidth_bytes_per_s = 1 << 20
    slow = explain(world)["estimate_s"]
    assert slow > 1024, "a gibibyte of disk at a mebibyte a second"
    json.dumps(document)
    assert (world.count(Migration), world.sent, world.kinds("")) == (0, [], [])


def test_explain_of_a_vm_that_does_not_run_is_about_an_offline_migration(world: World) -> None:
    world.change(Vm, state=VmState.STOPPED)
    document = explain(world)
    assert [each["method"] for each in document["volumes"]] == ["copy", "copy", "tpm_sync"]
    assert document["phases"] == ["check", "reserve", "sync_tpm", "copy_cold", "hand_over", "retire_source"]
    assert document["refusals"] == []


def test_explain_tells_all_refusals_at_once(world: World) -> None:
    world.change(Node, Node.name == "beta", state=NodeState.MAINTENANCE)
    world.change(Volume, Volume.device == "ide2", role=VolumeRole.CDROM)
    world.silence("beta")
    refusals = explain(world)["refusals"]
    assert [each["code"] for each in refusals] == ["node_in_maintenance", "node_silent", "cdrom_local"]
    assert all(set(each) == {"code", "message", "hint"} for each in refusals)


def test_explain_and_filing_say_the_same(world: World) -> None:
    world.change(Node, Node.name == "beta", state=NodeState.MAINTENANCE)
    assert [each["code"] for each in explain(world)["refusals"]] == [code_of(world.file)] == ["node_in_maintenance"]


def test_explain_of_a_storage_that_the_target_has_not(world: World) -> None:
    world.change(Storage, Storage.path == "/beta/images", name="other")
    assert [each["code"] for each in explain(world)["refusals"]] == [code_of(world.file)] == ["storage_missing"]


@pytest.mark.parametrize(("vm", "target", "code"), [("wep", "beta", "unknown_vm"), ("web", "bet", "unknown_node")])
def test_unknown_names(world: World, vm: str, target: str, code: str) -> None:
    assert code_of(lambda: explain(world, vm, target)) == code
    assert code_of(lambda: migrations.file_migration(world.context, vm, target=target)) == code
    assert code_of(lambda: migrations.show_migration(world.context, 7)) == "unknown_migration"


# -- filing -----------------------------------------------------------------------------------------------------------


def test_refused_filing_writes_nothing(world: World) -> None:
    world.silence("beta")
    assert code_of(world.file) == "node_silent"
    assert (world.count(Migration), world.count(Step), world.sent, world.kinds("")) == (0, 0, [], [])


def test_second_migration_of_a_vm_is_refused(world: World) -> None:
    world.file()
    assert code_of(world.file) == "migration_open"
    assert world.count(Migration) == 1


def test_planned_transfers(world: World) -> None:
    world.file()
    with world.context.database.read() as session:
        rows = session.scalars(select(VolumeTransfer).order_by(VolumeTransfer.id)).all()
        planned = [(row.role, row.method, row.source_name, row.target_storage.path, row.target_name) for row in rows]
    assert planned == [
        ("disk", "mirror", "web/disk.qcow2", "/beta/images", "web/disk.qcow2"),
        ("cloudinit", "copy", "web/ci.raw", "/beta/images", "web/ci.raw"),
        ("tpmstate", "tpm_sync", "web/tpm.raw", "/beta/images", "web/tpm.raw"),
    ]


def test_name_that_is_taken_on_the_target_is_left_alone(world: World) -> None:
    """By another VM's replica: it stays what it is."""
    other = world.add_vm("other")
    world.add_replica("beta", "web/disk.qcow2", vm_id=other)
    world.file()
    view = world.view()
    assert str(view.transfers[0].target_path) == "/beta/images/web/disk-1.qcow2"


def test_difference_goes_onto_an_overlay_over_the_replica(world: World) -> None:
    world.add_replica("beta", "web/old.qcow2")
    assert explain(world)["volumes"][0]["method"] == "delta"
    world.file()
    (disk, *_) = world.view().transfers
    assert (str(disk.base_path), str(disk.target_path)) == (
        "/beta/images/web/old.qcow2",
        "/beta/images/web/old.qcow2.m1",
    )
    assert (disk.final_path, disk.final_name) == (disk.base_path, "web/old.qcow2")
    assert world.view().turn == Turn(1, 2)


def test_way_back_does_not_meet_the_state_in_quarantine(world: World, halves: Halves) -> None:
    move, hand = halves
    world.reserve_tpm(world.view())
    world.commit(hand)
    chain.complete(world.context, move, notes={})
    world.settle()
    world.change(Vm, state=VmState.RUNNING)
    back = migrations.file_migration(world.context, "web", target="alpha")
    tpm = world.view(back).tpm
    assert tpm is not None
    assert str(tpm.target_path) == "/alpha/images/web/tpm-1.raw"


# -- documents --------------------------------------------------------------------------------------------------------


def test_document_has_the_contracts_keys(world: World) -> None:
    world.file()
    document = migrations.show_migration(world.context, 1)
    assert set(document) >= CONTRACT
    assert all(set(each) >= PHASE_KEYS for each in document["phases"])
    assert all(set(each) >= VOLUME_KEYS for each in document["volumes"])
    assert set(document["tpm"]) == {"digest_source", "digest_target", "identity_same"}
    assert (document["vm"], document["source"], document["target"], document["attempt"]) == ("web", "alpha", "beta", 1)
    json.dumps(document)


def test_document_of_a_finished_migration(world: World, halves: Halves) -> None:
    move, hand = halves
    tpm = world.view().tpm
    assert tpm is not None
    world.change(VolumeTransfer, VolumeTransfer.id == tpm.id, digest_source="d", digest_target="d",
                 identity_source="i", identity_target="i")  # fmt: skip
    world.commit(hand)
    chain.complete(world.context, hand, notes={}, marks={"resumed": 10.045, "proved": 10.02})
    chain.complete(world.context, move, notes={"ram_bytes": 77}, marks={"paused": 10.0, "stream_done": 10.01})
    world.settle()
    document = migrations.show_migration(world.context, 1)
    assert (document["state"], document["ram_bytes"], document["error"], document["errors"]) == ("done", 77, None, [])
    assert document["pause"] == {"paused": 0.0, "stream_done": 10.0, "proved": 20.0, "resumed": 45.0}
    assert document["tpm"] == {"digest_source": "d", "digest_target": "d", "identity_same": True}
    assert [(each["name"], each["node"], each["state"]) for each in document["phases"]][:4] == [
        ("check", None, "done"), ("check", "alpha", "done"), ("check", "beta", "done"), ("reserve", "beta", "done"),
    ]  # fmt: skip
    assert document["total_s"] >= 0
    assert migrations.show_migration(world.context, 1)["total_s"] == document["total_s"]


def test_other_identity_is_not_the_same(world: World) -> None:
    world.file()
    world.change(VolumeTransfer, VolumeTransfer.role == "tpmstate", identity_source="i", identity_target="j")
    assert migrations.show_migration(world.context, 1)["tpm"]["identity_same"] is False
    world.change(VolumeTransfer, VolumeTransfer.role == "tpmstate", identity_target=None)
    assert migrations.show_migration(world.context, 1)["tpm"]["identity_same"] is None


@pytest.mark.parametrize("state", MigrationState)
def test_shown_states_are_the_contracts(world: World, state: MigrationState) -> None:
    world.file()
    world.change(Migration, state=state)
    assert world.shown() in STATES
    world.change(Migration, needs_operator=True)
    assert world.shown() == "needs_operator"


def test_failed_migration_tells_why(world: World) -> None:
    world.file()
    world.fail(world.take())
    document = migrations.show_migration(world.context, 1)
    assert document["error"] == {"code": "broken", "message": "it broke", "hint": "Mend it."}
    assert document["errors"] == [document["error"]]


def test_list_has_the_newest_first(world: World) -> None:
    world.file()
    world.fail(world.take())
    world.file()
    assert [each["id"] for each in migrations.list_migrations(world.context)] == [2, 1]
    assert [each["id"] for each in migrations.list_migrations(world.context, limit=1)] == [2]


@pytest.mark.parametrize(
    ("state", "status"),
    [("done", 0), ("undone", 1), ("cancelled", 1), ("refused", 2), ("needs_operator", 3)],
)
def test_exit_status(state: str, status: int) -> None:
    assert migrations.exit_status_of(state) == status


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_past_check_is_when_all_three_sides_have_looked(world: World) -> None:
    world.file()
    looks = []
    for side in Side:
        looks.append(migrations.is_past_check(migrations.show_migration(world.context, 1)))
        held = world.take()
        assert (held.phase, held.side) == (Phase.CHECK, side)
        world.complete(held)
    looks.append(migrations.is_past_check(migrations.show_migration(world.context, 1)))
    assert looks == [False, False, False, True]


def test_waiting_shows_each_look_and_ends(world: World) -> None:
    world.file()
    looks: list[str] = []

    def look(document: dict[str, Any]) -> None:
        looks.append(document["phases"][0]["state"])
        if looks[-1] == "ready":
            world.fail(world.take())

    document = migrations.await_migration(world.context, 1, until=migrations.is_over, look=look)
    assert document["state"] == "undone"
    assert looks == ["ready", "failed"]


# -- cancel and retry -------------------------------------------------------------------------------------------------


def test_cancel_asks(world: World) -> None:
    world.file()
    document = migrations.cancel_migration(world.context, 1)
    assert document["state"] == "running"
    assert world.migration().cancel_asked
    assert world.kinds() == ["queued", "running", "cancel_asked"]


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("handed_over", "cancel_too_late"),
        ("done", "cancel_too_late"),
        ("rolling_back", "migration_over"),
        ("undone", "migration_over"),
        ("refused", "migration_over"),
        ("cancelled", "migration_over"),
    ],
)
def test_cancel_that_is_refused(world: World, state: str, code: str) -> None:
    world.file()
    world.change(Migration, state=state)
    assert code_of(lambda: migrations.cancel_migration(world.context, 1)) == code
    assert not world.migration().cancel_asked


@pytest.mark.parametrize("state", ["undone", "refused", "cancelled"])
def test_retry_files_again(world: World, state: str) -> None:
    world.file()
    world.change(Migration, state=state)
    assert migrations.retry_migration(world.context, 1) == 2
    assert (world.state(1), world.state(2), world.picture(2)) == (state, "running", "r..........")


@pytest.mark.parametrize("state", ["queued", "running", "handed_over", "rolling_back", "done"])
def test_retry_that_is_refused(world: World, state: str) -> None:
    world.file()
    world.change(Migration, state=state)
    assert code_of(lambda: migrations.retry_migration(world.context, 1)) == "not_to_be_retried"


# -- onto other storages ----------------------------------------------------------------------------------------------


def add_storages(world: World, *names: str, node: str = "beta") -> None:
    with world.context.database.write() as session:
        at = session.scalars(select(Node).where(Node.name == node)).one()
        at.storages += [Storage(name=name, kind="folder", path=f"/{node}/{name}") for name in names]


def test_onto_devices(world: World) -> None:
    """Names and formats are what can be there, and the definition follows when it is handed over."""
    with world.context.database.write() as session:
        at = session.scalars(select(Node).where(Node.name == "beta")).one()
        at.storages.append(Storage(name="fast", kind="lvmthin", path="/dev/pve", pool="data"))
    terms = Terms(storage_map={"local": "fast"})
    migrations.file_migration(world.context, "web", target="beta", terms=terms)
    view = world.view()
    assert {each.target_format for each in view.transfers} == {"raw"}
    assert {each.device: each.target_name for each in view.transfers}["tpmstate0"] == "web-tpm"
    assert not any(each.goes_as_file for each in view.transfers)
    assert {each.target_image.device_bytes for each in view.transfers} == {each.size_bytes for each in view.transfers}


def transfers(world: World) -> dict[str, str]:
    """Where the volumes go, by device."""
    return {each.device: f"{each.target_storage}:{each.target_name}" for each in world.view().transfers}


@pytest.mark.parametrize(("shared", "method"), [((), "mirror"), (("alpha",), "mirror"), (("alpha", "beta"), "none")])
def test_volume_stays_where_both_nodes_share_its_storage(world: World, shared: tuple[str, ...], method: str) -> None:
    add_storages(world, "pool", node="alpha")
    add_storages(world, "pool", node="beta")
    with world.context.database.write() as session:
        pools = session.scalars(select(Storage).where(Storage.name == "pool")).all()
        for pool in pools:
            pool.shared = pool.node.name in shared
        session.scalars(select(Volume).where(Volume.device == "scsi0")).one().storage_id = pools[0].id
    migrations.file_migration(world.context, "web", target="beta")
    (disk,) = (each for each in world.view().transfers if each.device == "scsi0")
    assert (disk.method, disk.target_name) == (method, "web/disk.qcow2")


def file_with(world: World, **mapped: str) -> int:
    return migrations.file_migration(world.context, "web", target="beta", terms=Terms(storage_map=mapped))


def test_volumes_go_onto_the_storage_that_is_wished(world: World) -> None:
    add_storages(world, "fast")
    add_storages(world, "slow", node="alpha")
    with world.context.database.write() as session:
        slow = session.scalars(select(Storage).where(Storage.name == "slow")).one()
        session.scalars(select(Volume).where(Volume.device == "ide2")).one().storage_id = slow.id
    assert [each["code"] for each in explain(world)["refusals"]] == ["storage_missing"]
    assert migrations.explain(world.context, "web", target="beta", storage_map={"slow": "fast"})["refusals"] == []
    file_with(world, slow="fast")
    assert transfers(world) == {
        "scsi0": "local:web/disk.qcow2", "ide2": "fast:web/ci.raw", "tpmstate0": "local:web/tpm.raw",
    }  # fmt: skip


def test_two_volumes_of_one_name_do_not_meet_on_one_storage(world: World) -> None:
    add_storages(world, "slow", node="alpha")
    with world.context.database.write() as session:
        slow = session.scalars(select(Storage).where(Storage.name == "slow")).one()
        moved = session.scalars(select(Volume).where(Volume.device == "ide2")).one()
        moved.storage_id, moved.name = slow.id, "web/disk.qcow2"
    file_with(world, slow="local")
    assert transfers(world)["scsi0"] == "local:web/disk.qcow2"
    assert transfers(world)["ide2"] == "local:web/disk-1.qcow2"


def test_volume_that_comes_does_not_meet_one_that_stays(world: World) -> None:
    add_storages(world, "pool", node="alpha")
    add_storages(world, "pool", node="beta")
    with world.context.database.write() as session:
        pools = session.scalars(select(Storage).where(Storage.name == "pool")).all()
        for pool in pools:
            pool.shared = True
        stays, comes = (
            session.scalars(select(Volume).where(Volume.device == device)).one() for device in ("scsi0", "tpmstate0")
        )
        stays.storage_id, comes.name = pools[0].id, stays.name
    file_with(world, local="pool")
    found = transfers(world)
    assert (found["scsi0"], found["tpmstate0"]) == ("pool:web/disk.qcow2", "pool:web/disk-1.qcow2")


@pytest.mark.parametrize(("device", "code"), [("scsi0", "nothing"), ("ide2", "name_taken")])
def test_name_that_another_vm_has_on_the_target(world: World, device: str, code: str) -> None:
    """A disk gets one beside it; cloud-init's is known elsewhere."""
    world.add_vm("other")
    with world.context.database.write() as session:
        (beta,) = session.scalars(select(Storage).join(Node).where(Node.name == "beta"))
        mine, its = (
            session.scalars(select(Volume).join(Vm).where(Vm.name == name, Volume.device == device)).one()
            for name in ("web", "other")
        )
        its.storage_id, its.name = beta.id, mine.name
    assert code_of(lambda: migrations.file_migration(world.context, "web", target="beta")) == code
    if code == "nothing":
        assert transfers(world)["scsi0"] == "local:web/disk-1.qcow2"


@pytest.mark.parametrize(
    ("mapped", "code"),
    [({"local": "nowhere"}, "storage_missing"), ({"wibble": "local"}, "storage_map_unused")],
)
def test_storage_map_that_is_refused(world: World, mapped: dict[str, str], code: str) -> None:
    assert code_of(lambda: file_with(world, **mapped)) == code
    assert world.count(Migration) == 0


def test_storage_map_is_kept_for_the_next_try(world: World) -> None:
    add_storages(world, "fast")
    first = file_with(world, local="fast")
    migrations.cancel_migration(world.context, first)
    world.settle()
    second = migrations.retry_migration(world.context, first)
    assert world.migration(second).storage_map == {"local": "fast"}


@pytest.mark.parametrize("word", ["", "local", "local:", ":local", "a:b:c"])
def test_word_that_maps_no_storage(word: str) -> None:
    assert code_of(lambda: read_storage_map([word])) == "bad_storage_map"


def test_words_that_map_storages() -> None:
    assert read_storage_map(["a:b", "c:d", "a:b"]) == {"a": "b", "c": "d"}
    assert code_of(lambda: read_storage_map(["a:b", "a:c"])) == "bad_storage_map"


def test_replica_on_a_third_node_keeps_the_format(world: World) -> None:
    """`recover` would open it in another one."""
    world.change(Volume, Volume.device == "scsi0", format="qcow2")
    with world.context.database.write() as session:
        at = session.scalars(select(Node).where(Node.name == "beta")).one()
        at.storages.append(Storage(name="fast", kind="lvm", path="/dev/pve"))
        third = Node(name="gamma", address="10.0.0.3", port_first=1, port_last=2)
        third.storages.append(Storage(name="local", kind="folder", path="/gamma/images"))
        session.add(third)
        volume = session.scalars(select(Volume).where(Volume.device == "scsi0")).one()
        replication = Replication(vm_id=volume.vm_id, target=third, created_at=now())
        replica = Replica(replication=replication, volume=volume, storage=third.storages[0], name="web/x.qcow2",
                          generation=1, synced_at=now())  # fmt: skip
        session.add(replica)
    terms = Terms(storage_map={"local": "fast"})
    assert code_of(lambda: migrations.file_migration(world.context, "web", target="beta", terms=terms)) == (
        "replica_has_other_format"
    )
    migrations.file_migration(world.context, "web", target="beta")
