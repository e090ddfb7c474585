"""The cluster as placing sees it: nodes with the room that they have, VMs with what they need, rules; from the rows.

The rows are read once for all rounds of a plan (cluster_rows.py); from then on it is values, and needs no transaction.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import inf
from types import MappingProxyType
from typing import Any

from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.definition import VmDefinition
from haulier.errors import Problem
from haulier.planner.guest_ram import needed_ram_bytes, seen_use
from haulier.planner.placing.cluster import Cluster, Guest, Host, Rule, StorageRoom
from haulier.planner.refusals import DISK_HEADROOM, RAM_HEADROOM, STARTED, closed_node, silent_node
from haulier.services.cluster_rows import (
    NodeRow,
    VmRow,
    VolumeRow,
    WayRow,
    cpus_of,
    load_incoming,
    load_near,
    load_nodes,
    load_rules,
    load_starting,
    load_staying,
    load_vms,
    load_ways,
    load_windows,
    ram_bytes_of,
)
from haulier.services.context import Context
from haulier.services.liveness import unheard_s
from haulier.settings import Settings
from models import NodeState, VolumeRole

# What a guest sees of its host's own CPU.
_HOST_CPUS = ("host", "max")
# What is free moves by some MiB from one heartbeat to the next, and no place should change by that.
_STEP = 256 << 20
_NONE: Mapping[str, Mapping[str, Problem]] = MappingProxyType({})
# The ways of those that are on one, and those that are off and to be started.
_ToCome = tuple[Mapping[int, WayRow], Collection[int]]


@dataclass(frozen=True, slots=True)
class Question:
    """Who is to be placed, which nodes are closed to them beside those that are closed anyway, which nodes each of them
    cannot go to, and why, and the only node that they may go to, if there is one.

    With `in_place` they may stay where they are: what they have there is theirs, and counts wherever they are put. A
    node's RAM is what there is for guests then, so that how full it is does not hang on what else runs on the host.
    """

    vms: Collection[int]
    closed: Mapping[str, Problem] = field(default_factory=dict)
    avoids: Mapping[str, Mapping[str, Problem]] = field(default_factory=dict)
    only_to: str | None = None
    in_place: bool = False


@dataclass(slots=True)
class _Taken:
    """What is taken on a node, or on its way there, by others than those to be placed; storages by their names. The RAM
    of those that are about to leave is a part of what is configured. `settled_bytes`: of those that are to be placed,
    and may stay.
    """

    configured_bytes: int = 0
    leaving_bytes: int = 0
    incoming_bytes: int = 0
    settled_bytes: int = 0
    cpus: int = 0
    storages: Counter[str] = field(default_factory=Counter)

    def add(self, guest: Guest, *, leaving: bool = False, incoming: bool = False) -> None:
        """A guest that is there, `leaving` or not, or `incoming`."""
        if guest.runs:
            self.configured_bytes += guest.ram_bytes
            self.leaving_bytes += guest.ram_bytes if leaving else 0
            self.incoming_bytes += guest.ram_bytes if incoming else 0
            self.cpus += guest.cpus

    def settle(self, guest: Guest, sign: int = 1) -> None:
        """A guest that may stay there; with -1 it is none of these any more."""
        if guest.runs:
            self.settled_bytes += sign * guest.ram_bytes

    def add_volumes(self, sizes: Mapping[str, int]) -> None:
        """What is to be written to its storages."""
        self.storages.update(sizes)

    def copy(self) -> _Taken:
        """Another one that changes alone."""
        return dataclasses.replace(self, storages=self.storages.copy())


@dataclass(frozen=True, slots=True)
class Movable:
    """A guest that is to be placed, unless it has to stay: then it has its room on `node_id`, and on its way to
    `target_id` already, where `own` of its bytes are to be written to each storage. `is_held`: it does not get there by
    itself.
    """

    id: int
    guest: Guest
    node_id: int
    target_id: int | None
    own: Mapping[str, int]
    is_held: bool = False

    def take(self, taken: Mapping[int, _Taken]) -> None:
        """It stays."""
        taken[self.node_id].add(self.guest)
        if self.target_id is not None:
            taken[self.target_id].add(self.guest, incoming=True)
            taken[self.target_id].add_volumes(self.own)


@dataclass(frozen=True, slots=True)
class Census:
    """All nodes and VMs as they were at one moment; `nodes` are the nodes' names by their ids, `vms` are those that are
    to be placed, by their names, and `hosts` the nodes if none of these has to stay.

    A migration that waits or is at work has its room on its target already, and a VM that is off for its move what it
    needs when it is started again.
    """

    nodes: Mapping[int, str]
    vms: Mapping[str, Movable]
    hosts: tuple[Host, ...]
    _settings: Settings
    _in_place: bool
    _asked: tuple[NodeRow, ...]
    _taken: Mapping[int, _Taken]
    _staying: tuple[Guest, ...]
    _rules: tuple[Rule, ...]

    def cluster(self, *, avoids: Mapping[str, Mapping[str, Problem]] = _NONE, stuck: Collection[str] = ()) -> Cluster:
        """As the planner wants it: with the nodes that each guest cannot go to, and those that are `stuck` staying."""
        free = [each.guest for name, each in self.vms.items() if name not in stuck]
        left = [each for name, each in self.vms.items() if name in stuck]
        return Cluster(
            self._hosts_beside(left),
            tuple(dataclasses.replace(guest, avoids=avoids.get(guest.name, {})) for guest in free),
            (*self._staying, *(self._at_its_place(each) for each in left)),
            self._rules,
        )

    def _hosts_beside(self, left: Collection[Movable]) -> tuple[Host, ...]:
        """Most hosts stay as they were."""
        changed = {place for each in left for place in (each.node_id, each.target_id) if place is not None}
        taken = {node_id: self._taken.get(node_id, _Taken()).copy() for node_id in changed}
        for each in left:
            each.take(taken)
            if self._in_place:
                taken[each.node_id].settle(each.guest, -1)
        return tuple(
            host
            if node.id not in changed
            else _host(self._settings, node, taken[node.id], closed=host.closed, in_place=self._in_place)
            for node, host in zip(self._asked, self.hosts, strict=True)
        )

    def _at_its_place(self, each: Movable) -> Guest:
        if each.target_id is None:
            return each.guest
        here, there = self.nodes[each.node_id], self.nodes[each.target_id]
        return dataclasses.replace(each.guest, host=there, leaving=here, is_held=each.is_held)


def load_census(context: Context, session: Session, question: Question) -> Census:
    """Read what there is to be known when these VMs are to be placed, all of it as it is now. Which nodes each of them
    avoids is left to `Census.cluster`: it changes while a plan is made.
    """
    nodes, ways = load_nodes(session), load_ways(session)
    names = {node.id: node.name for node in nodes}
    starting = load_starting(session)
    staying, taken = _staying(context.settings, session, question, (ways, starting), nodes)
    movable = _movable(context.settings, session, question, (ways, starting), nodes)
    vms = {each.guest.name: each for each in movable}
    if question.in_place:
        for each in vms.values():
            taken[each.node_id].settle(each.guest)
    asked = tuple(node for node in nodes if question.only_to in (None, node.name))
    rules = load_rules(session, names)
    hosts = tuple(_hosts(context, session, question, asked, taken))
    return Census(names, vms, hosts, context.settings, question.in_place, asked, taken, tuple(staying), rules)


def _hosts(
    context: Context, session: Session, question: Question, nodes: Sequence[NodeRow], taken: Mapping[int, _Taken]
) -> Iterator[Host]:
    windows = load_windows(session)
    for node in nodes:
        closed = _why_closed(context, node, question, windows.get(node.id))
        yield _host(context.settings, node, taken[node.id], closed=closed, in_place=question.in_place)


def _staying(
    settings: Settings, session: Session, question: Question, to_come: _ToCome, nodes: Sequence[NodeRow]
) -> tuple[list[Guest], Mapping[int, _Taken]]:
    """Those that are not to be placed, and what they take of each node."""
    staying, taken, of_id = list[Guest](), defaultdict[int, _Taken](_Taken), {node.id: node for node in nodes}
    ways, starting = to_come
    for row in load_staying(session, but=question.vms, starting=starting):
        way, here = ways.get(row.id), of_id[row.node_id]
        ram_bytes = _needed(settings, here, row.name, row.ram_bytes)
        guest = Guest(row.name, here.name, ram_bytes=ram_bytes, cpus=row.cpus, runs=row.runs)
        # What one that is off will need is not in what was measured.
        taken[row.node_id].add(guest, leaving=way is not None, incoming=row.starts and way is None)
        if way is not None:
            taken[way.target_id].add(guest, incoming=True)
            target = of_id[way.target_id]
            held = _is_held(way, target, question)
            guest = dataclasses.replace(guest, host=target.name, leaving=here.name, is_held=held)
        staying.append(guest)
    for node_id, sizes in load_incoming(session, but=question.vms).items():
        taken[node_id].add_volumes(sizes)
    return staying, taken


def _is_held(way: WayRow, target: NodeRow, question: Question) -> bool:
    """Whether waiting alone brings it nowhere: to a node that takes nothing nobody is begun."""
    is_closed = target.state is not NodeState.ONLINE or target.name in question.closed
    return way.is_held or (way.waits and is_closed)


def _needed(settings: Settings, node: NodeRow, vm: str, configured_bytes: int) -> int:
    """What a VM on this node needs of RAM, by policy."""
    return needed_ram_bytes(configured_bytes, seen_use(node.facts, vm, policy=settings.placement_ram))


def _movable(
    settings: Settings, session: Session, question: Question, to_come: _ToCome, nodes: Sequence[NodeRow]
) -> Iterator[Movable]:
    ways, starting = to_come
    of_id, near = {node.id: node for node in nodes}, load_near(session, question.vms, nodes)
    for row in load_vms(session, question.vms):
        own = _sizes(volume for volume in row.volumes if not volume.shared)
        guest = _guest(settings, row, of_id[row.node_id], near.get(row.id, frozenset()))
        if row.id in starting:
            guest = dataclasses.replace(guest, runs=True)
        way = ways.get(row.id)
        held = way is not None and _is_held(way, of_id[way.target_id], question)
        yield Movable(row.id, guest, row.node_id, way.target_id if way is not None else None, own, held)


def _sizes(volumes: Iterable[VolumeRow]) -> Mapping[str, int]:
    """The bytes on each storage."""
    found = Counter[str]()
    for volume in volumes:
        found[volume.storage] += volume.size_bytes
    return found


def _guest(settings: Settings, row: VmRow, node: NodeRow, near: frozenset[str]) -> Guest:
    definition, pinned = VmDefinition.from_dict(row.definition), row.pinned
    owned = [volume for volume in row.volumes if volume.role is not VolumeRole.CDROM]
    cpu = str(pinned.get("cpu") or "").partition(",")[0]
    return Guest(
        row.name,
        node.name,
        ram_bytes=_needed(settings, node, row.name, ram_bytes_of(pinned.get("ram_kib"), definition.memory_mib)),
        cpus=cpus_of(definition.cores, definition.sockets),
        runs=row.state in STARTED,
        storages=_sizes(owned),
        machine=pinned.get("machine"),
        accel=pinned.get("accel"),
        cpu_model=node.facts.get("cpu_model") if cpu in _HOST_CPUS and pinned.get("accel") == "kvm" else None,
        bridges=frozenset(nic.bridge for nic in definition.nics if nic.bridge),
        has_tpm=any(volume.role is VolumeRole.TPMSTATE for volume in owned),
        libtpms=node.facts.get("libtpms_version"),
        near=near,
    )


def _host(settings: Settings, node: NodeRow, taken: _Taken, *, closed: Problem | None, in_place: bool) -> Host:
    facts = node.facts
    ram, ram_taken = _ram_room(settings, facts, taken, in_place=in_place)
    overcommit = settings.cpu_overcommit
    bridges = facts.get("bridges") if node.network == "bridge" else None
    return Host(
        node.name,
        ram_bytes=ram,
        ram_taken_bytes=ram_taken,
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


def _ram_room(settings: Settings, facts: Mapping[str, Any], taken: _Taken, *, in_place: bool) -> tuple[int, int]:
    """A node's RAM, and what is taken of it by others than those to be placed."""
    ram, free = int(facts.get("ram_bytes") or 0), _free_bytes(settings, facts, taken)
    if not (in_place and ram):
        return ram, ram - max(free, 0)
    # What those have that are about to leave is nobody's room yet, and makes the node no fuller.
    others = taken.configured_bytes - taken.leaving_bytes
    return max(others + taken.settled_bytes + free, 0), others


def _free_bytes(settings: Settings, facts: Mapping[str, Any], taken: _Taken) -> int:
    """What a node's guests leave of its RAM: as it was measured, and by policy also as they are configured."""
    seen = int(facts.get("ram_free_bytes") or 0)
    measured = seen - seen % _STEP - taken.incoming_bytes - RAM_HEADROOM
    if settings.placement_ram == "used":
        return measured
    configured = taken.configured_bytes + taken.settled_bytes
    return min(measured, int(facts.get("ram_bytes") or 0) - configured - RAM_HEADROOM)


def _storage_rooms(node: NodeRow, taken: _Taken) -> dict[str, StorageRoom]:
    free: dict[str, int] = node.facts.get("storage_free_bytes", {})
    rooms = {}
    for name, shared in node.storages.items():
        known = free.get(name)
        rooms[name] = StorageRoom(inf if known is None else known - taken.storages[name] - DISK_HEADROOM, shared=shared)
    return rooms


def _why_closed(context: Context, node: NodeRow, question: Question, window: datetime | None) -> Problem | None:
    if node.name in question.closed:
        return question.closed[node.name]
    if node.state is not NodeState.ONLINE:
        return closed_node(node.name, node.state)
    silent = unheard_s(node.heartbeat_at, limit_s=context.settings.node_silent_after_s)
    if silent is not None:
        return silent_node(node.name, silent)
    lead = timedelta(seconds=context.settings.window_lead_s)
    if window is not None and window - now() < lead and question.only_to is None:
        words = f"{node.name} has a maintenance window at {window.isoformat(timespec='minutes')}"
        return Problem("window_soon", words, "haulier window list")
    return None
