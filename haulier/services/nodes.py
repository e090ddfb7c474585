"""Nodes: they register themselves when their worker starts, and beat as long as it lives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, selectinload

from haulier.clock import now
from haulier.definition.files import read_storages
from haulier.definition.sections import Place
from haulier.definition.storage import StorageKind, StoragePlace
from haulier.definition.storage_cfg import StorageSpec
from haulier.errors import Refused
from haulier.planner.limits import Limits
from haulier.services.alert_duty import exclude_others, overrule
from haulier.services.bandwidth import divide_anew
from haulier.services.context import Context, Unit
from haulier.services.limits import LimitChange, change_limits
from haulier.services.liveness import silent_s
from haulier.services.lookup import find_node
from haulier.services.room import load_limits
from haulier.services.waiting import make_room
from models import Base, Evacuation, EvacuationState, Gate, Node, NodeState, Storage, Vm
from models.transitions import OPEN_EVACUATION

LOCAL_STORAGE = "local"
_NODE = Base.metadata.tables["node"]
# Files given by their absolute path; its folder is the host's root.
HOST_FILES = "host-files"
# A host's name, IPv4 or IPv6.
_ADDRESS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


def register_node(context: Context, name: str, *, facts: dict[str, Any], images: Path) -> int:
    """Write down that this node is there, with what it can do and its own image folder. Returns its row's id."""
    settings = context.settings
    with context.unit() as unit:
        node = unit.session.scalar(select(Node).where(Node.name == name))
        if node is None:
            node = Node(name=name, address="", port_first=1, port_last=1)
            unit.session.add(node)
            unit.note("node.registered", node=name)
        node.address, node.network, node.facts = settings.address, settings.network, facts
        node.port_first, node.port_last = settings.port_first, settings.port_last
        node.heartbeat_at = now()
        _welcome_back(unit, node)
        unit.session.flush()
        ensure_storage(unit.session, node, LOCAL_STORAGE, StoragePlace(StorageKind.FOLDER, images))
        unit.ring("nodes")
        make_room(unit)
        return node.id


def ensure_storage(session: Session, node: Node, name: str, site: StoragePlace, *, shared: bool = False) -> Storage:
    """The storage's row on this node, made if it is not there. Raises Refused when it is there as another one."""
    storage = session.scalar(select(Storage).where(Storage.node_id == node.id, Storage.name == name))
    if storage is None:
        storage = Storage(
            node_id=node.id, name=name, kind=site.kind, path=str(site.folder), pool=site.pool, shared=shared
        )
        session.add(storage)
        session.flush()
    _refuse_two_kinds(session, node, name, site)
    if (storage.kind, storage.path, storage.pool) != (site.kind, str(site.folder), site.pool):
        raise Refused(
            "storage_differs",
            f"storage {name} of node {node.name} is {_words(storage.path, storage.pool)},"
            f" not {_words(str(site.folder), site.pool)}",
            "A storage stays where it is as long as volumes may lie there.",
        )
    return storage


def _refuse_two_kinds(session: Session, node: Node, name: str, site: StoragePlace) -> None:
    """What is made by one kind must not be removed by another; thick and thin volumes of a group are one kind here."""
    lvm = (StorageKind.LVM, StorageKind.LVMTHIN)
    same = (Storage.node_id == node.id, Storage.path == str(site.folder), Storage.name != name)
    for other in session.scalars(select(Storage).where(*same)):
        if other.kind != site.kind and not (other.kind in lvm and site.kind in lvm):
            words = f"{site.folder} is the storage {other.name} of kind {other.kind} already"
            raise Refused("storage_differs", words, "One kind of storage a place.")


def _words(folder: str, pool: str | None) -> str:
    return f"{folder} (pool {pool})" if pool else folder


def find_node_id(context: Context, name: str) -> int:
    """The id of a node's row. Raises Refused `unknown_node`."""
    with context.database.read() as session:
        return find_node(session, name).id


def place_named(storage: str, name: str) -> Place:
    """A volume's place as a definition names it: a file by its absolute path lies on no storage."""
    return (None, f"/{name}") if storage == HOST_FILES else (storage, name)


def place_of(storage: Storage) -> StoragePlace:
    """Where a storage is, as its node's worker needs it."""
    return place_at(storage.kind, storage.path, storage.pool)


def place_at(kind: str, path: str, pool: str | None) -> StoragePlace:
    """The same, by what its row says."""
    return StoragePlace(StorageKind(kind), Path(path), pool)


def storage_places(context: Context, node_id: int) -> dict[str, StoragePlace]:
    """Where each of a node's storages is, by its name."""
    with context.database.read() as session:
        rows = session.scalars(select(Storage).where(Storage.node_id == node_id))
        return {storage.name: place_of(storage) for storage in rows}


def beat(context: Context, node_id: int, facts: Mapping[str, Any] | None = None) -> None:
    """Say that the node's worker lives, with its facts as they are now; None leaves them. One statement: there may be a
    thousand nodes.
    """
    known = (_NODE.c.id == node_id, _NODE.c.state != NodeState.LOST)
    fresh: dict[str, Any] = {"heartbeat_at": now(), **({} if facts is None else {"facts": dict(facts)})}
    with context.database.write() as session:
        heard = session.connection().execute(update(_NODE).where(*known).values(fresh)).rowcount
    if not heard:
        with context.unit() as unit:
            node = unit.session.get_one(Node, node_id)
            node.heartbeat_at = fresh["heartbeat_at"]
            _welcome_back(unit, node)


def _welcome_back(unit: Unit, node: Node) -> None:
    """What was declared to be off is not: it takes nothing new before somebody has looked."""
    if node.state is NodeState.LOST:
        node.state, node.closed_by = NodeState.MAINTENANCE, None
        unit.note("node.returned", node=node.name)


def leave(context: Context, node_id: int) -> None:
    """Say that the node's worker ends in good order, so that nobody waits for its silence to be noticed."""
    with context.database.write() as session:
        session.execute(update(Node).where(Node.id == node_id).values(heartbeat_at=None))


@dataclass(frozen=True, slots=True)
class NodeChange:
    """What a person may change about a node; None leaves it. `storages` is a storage.cfg of which it gets those that it
    can have, `limits` are how many migrations may leave and reach it at once.
    """

    address: str | None = None
    maintenance: bool | None = None
    storages: Path | None = None
    limits: tuple[LimitChange, ...] = ()


def change_node(context: Context, name: str, change: NodeChange) -> dict[str, Any]:
    """Change a node. Returns it with `left_out`: the storages of the file that it was not given.

    Raises Refused for an unknown one, for what is no address, and for a file without a storage that it can have;
    nothing was changed then.
    """
    if change.address is not None and not _ADDRESS.fullmatch(change.address):
        raise Refused("bad_address", f"{change.address!r} is no address", "A host's name, or an IP address.")
    described = read_storages(change.storages) if change.storages else ()
    left_out: list[str] = []
    with context.unit() as unit:
        if change.maintenance is not None:
            exclude_others(unit)
        node = find_node(unit.session, name, lock=change.maintenance is not None)
        if change.limits:
            change_limits(context, unit, change.limits)
        if change.storages is not None:
            left_out = _add_storages(unit.session, node, described)
        if change.address is not None:
            node.address = change.address
        if change.maintenance is not None and node.state is NodeState.LOST:
            words = f"node {name} was declared lost, and its worker has not been heard since"
            raise Refused("node_lost", words, "Start its worker: it is in maintenance then.")
        if change.maintenance is not None:
            _require_own_state(unit.session, node)
            set_maintenance(unit, node, on=change.maintenance)
            if not change.maintenance:
                overrule(unit, node)
    if change.limits:
        divide_anew(context)
    return {**show_node(context, name), "left_out": left_out}


def set_maintenance(unit: Unit, node: Node, *, on: bool, by: str | None = None) -> None:
    """Have a node take nothing new, or again; the caller holds its row, and knows that it is nobody's. `by` is who
    closes it, if it is no person.
    """
    node.state, node.closed_by = NodeState.MAINTENANCE if on else NodeState.ONLINE, by
    unit.note("node.maintenance", node=node.name, on=on)
    unit.session.flush()
    make_room(unit)


def _require_own_state(session: Session, node: Node) -> None:
    """Raise Refused for a node that belongs to an evacuation: behind its back it is neither closed nor opened."""
    holds = [state for state in OPEN_EVACUATION if state is not EvacuationState.RESTORING]
    query = select(Evacuation.id).where(Evacuation.node_id == node.id, Evacuation.state.in_(holds))
    if (evacuation_id := session.scalar(query)) is not None:
        hint = f"haulier restore {node.name}, or haulier evacuation cancel {evacuation_id}"
        raise Refused("node_draining", f"node {node.name} belongs to evacuation {evacuation_id}", hint)


def _add_storages(session: Session, node: Node, described: Iterable[StorageSpec]) -> list[str]:
    """Give a node the storages of a file that are for it. Returns the names of the others: of kinds that it cannot
    have, of other nodes, disabled ones.
    """
    described = tuple(described)
    wanted = [each for each in described if each.is_usable and each.is_on(node.name) and each.name != LOCAL_STORAGE]
    if not wanted:
        words = f"there is no storage in it that {node.name} could have"
        raise Refused("no_storage", words, "Look at `nodes`, `disable` and the kinds in docs/vm-files.md.")
    for each in wanted:
        ensure_storage(session, node, each.name, each.place(), shared=each.shared)
    return [each.name for each in described if each not in wanted and each.name != LOCAL_STORAGE]


def _load_limits(context: Context, session: Session) -> tuple[Limits, ...]:
    return tuple(load_limits(context, session, gate) for gate in Gate)


def show_node(context: Context, name: str) -> dict[str, Any]:
    """One node as contract.md shows it. Raises Refused for an unknown one."""
    with context.database.read() as session:
        return _document(session, find_node(session, name), context, _load_limits(context, session))


def list_nodes(context: Context, *, after: str = "", limit: int | None = None) -> list[dict[str, Any]]:
    """All nodes as contract.md shows them, by name: those that come after this one, and no more than so many."""
    with context.database.read() as session:
        limits = _load_limits(context, session)
        query = select(Node).where(Node.name > after).order_by(Node.name).limit(limit)
        return [
            _document(session, node, context, limits)
            for node in session.scalars(query.options(selectinload(Node.storages)))
        ]


def _document(session: Session, node: Node, context: Context, limits: tuple[Limits, ...]) -> dict[str, Any]:
    vms = session.scalar(select(func.count()).select_from(Vm).where(Vm.node_id == node.id))
    age = (now() - node.heartbeat_at).total_seconds() if node.heartbeat_at else None
    silent = silent_s(node, limit_s=context.settings.node_silent_after_s) is not None
    return {
        "name": node.name,
        "state": node.state,
        "worker": "silent" if silent else "alive",
        "address": node.address,
        "ports": f"{node.port_first}-{node.port_last}",
        "network": node.network,
        "max_out": limits[0].out_of(node.name),
        "max_in": limits[0].into_of(node.name),
        "max_moves_out": limits[1].out_of(node.name),
        "max_moves_in": limits[1].into_of(node.name),
        "bandwidth_out_bytes_per_s": limits[2].out_of(node.name),
        "bandwidth_in_bytes_per_s": limits[2].into_of(node.name),
        "vms": vms,
        "ram_bytes": node.facts.get("ram_bytes"),
        "ram_free_bytes": node.facts.get("ram_free_bytes"),
        "heartbeat_age_s": age,
        "qemu_version": node.facts.get("qemu_version"),
        "accel": node.facts.get("accel"),
        "swtpm_version": node.facts.get("swtpm_version"),
        "libtpms_version": node.facts.get("libtpms_version"),
        "storages": [
            {
                "name": storage.name,
                "kind": storage.kind,
                "path": storage.path,
                "pool": storage.pool,
                "shared": storage.shared,
            }
            for storage in node.storages
        ],
    }
