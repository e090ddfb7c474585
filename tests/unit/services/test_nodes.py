"""Nodes: they register themselves, beat, fall silent; people change them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from haulier.clock import now
from haulier.errors import Refused
from haulier.planner.refusals import silent_node
from haulier.services import liveness, nodes
from haulier.services.context import Context
from models import Node
from tests.unit.services.world import World, make_settings

CONTRACT = {"name", "state", "vms", "ram_free_bytes", "heartbeat_age_s"}
FACTS = {"qemu_version": "7.2.22", "accel": "tcg", "ram_bytes": 8, "ram_free_bytes": 4}


def around(world: World, **settings: object) -> Context:
    chosen = make_settings(Path("/s"), world.context.settings.database, **settings)
    return Context(chosen, world.context.database, world.context.signals, world.sent.append)


def register(world: World, name: str = "gamma", images: str = "/gamma/images", **settings: object) -> int:
    return nodes.register_node(around(world, **settings), name, facts=FACTS, images=Path(images))


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        act()
    return caught.value.code


def test_new_node(world: World) -> None:
    register(world, address="10.0.0.9", ports="7000-7009", network="isolated")
    document = nodes.show_node(world.context, "gamma")
    assert document["heartbeat_age_s"] < 60
    assert document | {"heartbeat_age_s": 0} == {
        "name": "gamma", "state": "online", "worker": "alive", "address": "10.0.0.9", "ports": "7000-7009",
        "network": "isolated", "max_out": 4, "max_in": 4, "max_moves_out": 2, "max_moves_in": 2,
        "bandwidth_out_bytes_per_s": None, "bandwidth_in_bytes_per_s": None, "vms": 0,
        "ram_bytes": 8, "ram_free_bytes": 4, "heartbeat_age_s": 0,
        "qemu_version": "7.2.22", "accel": "tcg", "swtpm_version": None, "libtpms_version": None,
        "storages": [{"name": "local", "kind": "folder", "path": "/gamma/images", "pool": None, "shared": False}],
    }  # fmt: skip
    assert world.kinds("node.") == ["registered"]


def test_registering_again_is_no_second_node(world: World) -> None:
    first = register(world)
    nodes.change_node(world.context, "gamma", nodes.NodeChange(maintenance=True))
    assert register(world, ports="8000-8001") == first
    document = nodes.show_node(world.context, "gamma")
    assert (document["ports"], document["state"]) == ("8000-8001", "maintenance")
    assert world.kinds("node.").count("registered") == 1


def test_storages_of_a_file(world: World, tmp_path: Path) -> None:
    """Those that are for the node and that it can have; again changes nothing."""
    path = tmp_path / "storage.cfg"
    path.write_text(
        "dir: local\n\tpath /var/lib/vz\n\nlvmthin: fast\n\tvgname pve\n\tthinpool data\n\tnodes alpha\n\n"
        "lvm: other\n\tvgname two\n\tnodes beta\n\nzfspool: tank\n\tpool tank\n\ndir: off\n\tpath /off\n\tdisable\n"
    )
    for _ in range(2):
        document = nodes.change_node(world.context, "alpha", nodes.NodeChange(storages=path))
    found = {each["name"]: (each["kind"], each["path"], each["pool"]) for each in document["storages"]}
    assert found == {"local": ("folder", "/alpha/images", None), "fast": ("lvmthin", "/dev/pve", "data")}
    assert document["left_out"] == ["other", "tank", "off"]
    path.write_text(path.read_text().replace("thinpool data", "thinpool other"))
    assert (
        code_of(lambda: nodes.change_node(world.context, "alpha", nodes.NodeChange(storages=path))) == "storage_differs"
    )
    path.write_text("zfspool: tank\n\tpool tank\n")
    change = nodes.NodeChange(storages=path, maintenance=True)
    assert code_of(lambda: nodes.change_node(world.context, "alpha", change)) == "no_storage"
    assert nodes.show_node(world.context, "alpha")["state"] == "online"


def test_place_that_has_a_kind_already(world: World, tmp_path: Path) -> None:
    """What one kind has made must not be removed by another; thick and thin volumes of one group are one kind."""
    path = tmp_path / "storage.cfg"
    thick, thin = "lvm: thick\n\tvgname pve\n\n", "lvmthin: thin\n\tvgname pve\n\tthinpool data\n\n"
    path.write_text(thick + thin)
    change = nodes.NodeChange(storages=path)
    nodes.change_node(world.context, "alpha", change)
    for text in ("block: prepared\n\tpath /dev/pve\n", "block: thick\n\tpath /dev/pve\n"):
        path.write_text(text)
        assert code_of(lambda: nodes.change_node(world.context, "alpha", change)) == "storage_differs"


def test_storage_keeps_its_folder(world: World) -> None:
    register(world)
    assert code_of(lambda: register(world, images="/elsewhere")) == "storage_differs"
    assert nodes.show_node(world.context, "gamma")["storages"][0]["path"] == "/gamma/images"


def test_beat_brings_fresh_facts(world: World) -> None:
    node_id = register(world)
    world.silence("gamma")
    assert nodes.show_node(world.context, "gamma")["worker"] == "silent"
    nodes.beat(world.context, node_id, {**FACTS, "ram_free_bytes": 1})
    document = nodes.show_node(world.context, "gamma")
    assert (document["worker"], document["ram_free_bytes"], document["accel"]) == ("alive", 1, "tcg")


def test_node_that_leaves_is_silent_at_once(world: World) -> None:
    nodes.leave(world.context, register(world))
    document = nodes.show_node(world.context, "gamma")
    assert (document["worker"], document["heartbeat_age_s"]) == ("silent", None)


def test_silence(world: World) -> None:
    with world.context.database.read() as session:
        node = session.get_one(Node, 1)
    assert liveness.silent_s(node, limit_s=1e9) is None
    assert liveness.silent_s(node, limit_s=-1) is not None
    node.heartbeat_at = now() + timedelta(hours=1)
    ahead_s = liveness.silent_s(node, limit_s=60)
    assert ahead_s is not None
    assert "ahead of our time" in silent_node("beta", ahead_s).message
    node.heartbeat_at = None
    assert liveness.silent_s(node, limit_s=60) == float("inf")


def test_maintenance_on_and_off(world: World) -> None:
    for on, state in ((True, "maintenance"), (False, "online")):
        change = nodes.NodeChange(maintenance=on)
        assert nodes.change_node(world.context, "beta", change)["state"] == state
    assert world.kinds("node.") == ["maintenance", "maintenance"]


def test_address_alone_changes_nothing_else(world: World) -> None:
    before = nodes.show_node(world.context, "beta")
    after = nodes.change_node(world.context, "beta", nodes.NodeChange(address="10.1.1.1"))
    assert after | {"heartbeat_age_s": 0} == before | {"heartbeat_age_s": 0, "address": "10.1.1.1", "left_out": []}


@pytest.mark.parametrize("address", ["10.1.1.1", "fd00::1", "beta", "beta-2.example.org"])
def test_addresses(world: World, address: str) -> None:
    assert nodes.change_node(world.context, "beta", nodes.NodeChange(address=address))["address"] == address


@pytest.mark.parametrize("address", ["", "not an address!", "-beta", "10.1.1.1/24", "beta:", "beta:22"])
def test_what_is_no_address(world: World, address: str) -> None:
    before = nodes.show_node(world.context, "beta")["address"]
    change = nodes.NodeChange(address=address)
    assert code_of(lambda: nodes.change_node(world.context, "beta", change)) == "bad_address"
    assert nodes.show_node(world.context, "beta")["address"] == before


def test_list_is_by_name_and_has_the_contracts_keys(world: World) -> None:
    register(world, "aaa", "/aaa")
    documents = nodes.list_nodes(world.context)
    assert [document["name"] for document in documents] == ["aaa", "alpha", "beta"]
    assert [document["vms"] for document in documents] == [0, 1, 0]
    assert all(set(document) >= CONTRACT for document in documents)


@pytest.mark.parametrize(("name", "hint"), [("alpa", "Did you mean alpha?"), ("zzz", "There is: alpha, beta.")])
def test_unknown_node(world: World, name: str, hint: str) -> None:
    with pytest.raises(Refused) as caught:
        nodes.show_node(world.context, name)
    assert (caught.value.code, caught.value.problem.hint) == ("unknown_node", hint)
    assert code_of(lambda: nodes.change_node(world.context, name, nodes.NodeChange())) == "unknown_node"
