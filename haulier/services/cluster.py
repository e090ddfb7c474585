"""The cluster as placing sees it: nodes with the room that they have, VMs with what they need, rules; from the rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import inf
from types import MappingProxyType

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from haulier.clock import now
from haulier.definition import VmDefinition
from haulier.errors import Problem
from haulier.planner.placing.cluster import Cluster, Guest, Host, Rule, RuleKind, StorageRoom
from haulier.planner.refusals import DISK_HEADROOM, RAM_HEADROOM, STARTED, closed_node, silent_node
from haulier.services.context import Context
from haulier.services.liveness import silent_s
from haulier.settings import Settings
from models import (
    MaintenanceWindow,
    Migration,
    Node,
    NodeState,
    PlacementRule,
    Replica,
    Storage,
    Vm,
    Volume,
    VolumeRole,
)
from models.transitions import OPEN_MIGRATION

# What a guest sees of its host's own CPU.
_HOST_CPUS = ("host", "max")
# What is free moves by some MiB from one heartbeat to the next, and no place should change by that.
_STEP = 256 << 20
_NONE: Mapping[str, Problem] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Question:
    """Who is to be placed, which nodes are closed to them beside those that are closed anyway, which nodes each of them
    cannot go to, and why, and the only node that they may go to, if there is one.
    """

    vms: Collection[int]
    closed: Mapping[str, Problem] = field(default_factory=dict)
    avoids: Mapping[str, Mapping[str, Problem]] = field(default_factory=dict)
    only_to: str | None = None


@dataclass(slots=True)
class _Taken:
    """What is taken on a node, or on its way there, by others than those to be placed; storages by their names."""

    configured_bytes: int = 0
    incoming_bytes: int = 0
    cpus: int = 0
    storages: Counter[str] = field(default_factory=Counter)


def load_cluster(context: Context, session: Session, question: Question) -> Cluster:
    """All nodes and VMs as they are now. A migration that waits or is at work has its room on its target already."""
    nodes = session.scalars(select(Node).options(selectinload(Node.storages)).order_by(Node.name)).all()
    names = {node.id: node.name for node in nodes}
    loaded = selectinload(Vm.volumes)
    vms = session.scalars(select(Vm).options(loaded.joinedload(Volume.storage)).order_by(Vm.name)).all()
    targets = _targets(session)
    near = _near(session, names)
    taken: dict[int, _Taken] = defaultdict(_Taken)
    placed, staying = list[Guest](), list[Guest]()
    for vm in vms:
        avoids = question.avoids.get(vm.name, {})
        if vm.id in question.vms:
            placed.append(_guest(vm, names[vm.node_id], near=near.get(vm.id, frozenset()), avoids=avoids))
            continue
        target = targets.get(vm.id)
        _take(taken[vm.node_id], vm)
        if target is not None:
            _take(taken[target], vm, incoming=True)
        staying.append(_guest(vm, names[vm.node_id if target is None else target]))
    windows = _windows(session)
    asked = [node for node in nodes if question.only_to in (None, node.name)]
    hosts = tuple(
        _host(context, node, taken[node.id], _why_closed(context, node, question, windows.get(node.id)))
        for node in asked
    )
    return Cluster(hosts, tuple(placed), tuple(staying), tuple(_rules(session)))


def _targets(session: Session) -> dict[int, int]:
    """The VMs that are on their way, or wait for it, with the ids of their targets."""
    open_ = (Migration.state.in_(OPEN_MIGRATION), Migration.replication_id.is_(None))
    return {row[0]: row[1] for row in session.execute(select(Migration.vm_id, Migration.target_id).where(*open_))}


def _near(session: Session, names: Mapping[int, str]) -> dict[int, frozenset[str]]:
    """The nodes that have a replica of each VM."""
    found: dict[int, set[str]] = defaultdict(set)
    # Told in full: the volumes of the replica's storage are others.
    query = (
        select(Volume.vm_id, Storage.node_id)
        .select_from(Replica)
        .join(Storage, Storage.id == Replica.storage_id)
        .join(Volume, Volume.id == Replica.volume_id)
    )
    for vm_id, node_id in session.execute(query):
        found[vm_id].add(names[node_id])
    return {vm_id: frozenset(nodes) for vm_id, nodes in found.items()}


def _take(taken: _Taken, vm: Vm, *, incoming: bool = False) -> None:
    ram = _ram_bytes(vm) if vm.state in STARTED else 0
    taken.configured_bytes += ram
    taken.cpus += _cpus(vm) if vm.state in STARTED else 0
    if incoming:
        taken.incoming_bytes += ram
        for volume in vm.volumes:
            taken.storages[volume.storage.name] += 0 if volume.storage.shared else volume.size_bytes or 0


def _ram_bytes(vm: Vm) -> int:
    """What it has if it runs, and would have else."""
    pinned: int = vm.pinned.get("ram_kib", 0) * 1024
    return pinned or int(vm.definition["memory_mib"]) << 20


def _cpus(vm: Vm) -> int:
    return int(vm.definition.get("cores", 1)) * int(vm.definition.get("sockets", 1))


def _guest(vm: Vm, host: str, *, near: frozenset[str] = frozenset(), avoids: Mapping[str, Problem] = _NONE) -> Guest:
    facts, definition = vm.node.facts, VmDefinition.from_dict(vm.definition)
    owned = [volume for volume in vm.volumes if volume.role is not VolumeRole.CDROM]
    storages = Counter[str]()
    for volume in owned:
        storages[volume.storage.name] += volume.size_bytes or 0
    cpu = str(vm.pinned.get("cpu") or "").partition(",")[0]
    return Guest(
        vm.name,
        host,
        ram_bytes=_ram_bytes(vm),
        cpus=_cpus(vm),
        runs=vm.state in STARTED,
        storages=storages,
        machine=vm.pinned.get("machine"),
        accel=vm.pinned.get("accel"),
        cpu_model=facts.get("cpu_model") if cpu in _HOST_CPUS and vm.pinned.get("accel") == "kvm" else None,
        bridges=frozenset(nic.bridge for nic in definition.nics if nic.bridge),
        has_tpm=any(volume.role is VolumeRole.TPMSTATE for volume in owned),
        libtpms=facts.get("libtpms_version"),
        near=near,
        avoids=avoids,
    )


def _host(context: Context, node: Node, taken: _Taken, closed: Problem | None) -> Host:
    settings, facts = context.settings, node.facts
    ram = int(facts.get("ram_bytes") or 0)
    free = _free_bytes(settings, facts, taken)
    overcommit = settings.cpu_overcommit
    bridges = facts.get("bridges") if node.network == "bridge" else None
    return Host(
        node.name,
        ram_bytes=ram,
        ram_taken_bytes=ram - max(free, 0),
        cpus=facts["cpus"] * overcommit if overcommit and "cpus" in facts else inf,
        cpus_taken=taken.cpus,
        storages=_storage_rooms(node, taken),
        machines=frozenset(facts["machines"]) if "machines" in facts else None,
        accel=facts.get("accel"),
        cpu_model=facts.get("cpu_model"),
        bridges=None if bridges is None else frozenset(bridges),
        has_swtpm=not (facts.get("swtpm_problem") or facts.get("swtpm_too_old")),
        libtpms=facts.get("libtpms_version"),
        closed=closed,
    )


def _free_bytes(settings: Settings, facts: Mapping[str, int], taken: _Taken) -> int:
    """What a node's guests leave of its RAM: as it was measured, and by policy also as they are configured."""
    seen = int(facts.get("ram_free_bytes") or 0)
    measured = seen - seen % _STEP - taken.incoming_bytes - RAM_HEADROOM
    if settings.placement_ram == "used":
        return measured
    return min(measured, int(facts.get("ram_bytes") or 0) - taken.configured_bytes - RAM_HEADROOM)


def _storage_rooms(node: Node, taken: _Taken) -> dict[str, StorageRoom]:
    free: dict[str, int] = node.facts.get("storage_free_bytes", {})
    rooms = {}
    for storage in node.storages:
        known = free.get(storage.name)
        left = inf if known is None else known - taken.storages[storage.name] - DISK_HEADROOM
        rooms[storage.name] = StorageRoom(left, shared=storage.shared)
    return rooms


def _windows(session: Session) -> dict[int, datetime]:
    """When the next window of each node begins that has one."""
    query = select(MaintenanceWindow.node_id, func.min(MaintenanceWindow.next_at)).group_by(MaintenanceWindow.node_id)
    return {node_id: next_at for node_id, next_at in session.execute(query) if next_at is not None}


def _why_closed(context: Context, node: Node, question: Question, window: datetime | None) -> Problem | None:
    if node.name in question.closed:
        return question.closed[node.name]
    if node.state is not NodeState.ONLINE:
        return closed_node(node.name, node.state)
    silent = silent_s(node, limit_s=context.settings.node_silent_after_s)
    if silent is not None:
        return silent_node(node.name, silent)
    lead = timedelta(seconds=context.settings.window_lead_s)
    if window is not None and window - now() < lead and question.only_to is None:
        words = f"{node.name} has a maintenance window at {window.isoformat(timespec='minutes')}"
        return Problem("window_soon", words, "haulier window list")
    return None


def _rules(session: Session) -> list[Rule]:
    loaded = (selectinload(PlacementRule.vms), selectinload(PlacementRule.nodes))
    return [
        Rule(
            rule.name,
            RuleKind(rule.kind),
            frozenset(vm.name for vm in rule.vms),
            frozenset(node.name for node in rule.nodes),
            hard=rule.hard,
        )
        for rule in session.scalars(select(PlacementRule).options(*loaded).order_by(PlacementRule.name))
    ]
