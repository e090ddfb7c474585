"""The rows that placing asks for, below the ORM: ten thousand VMs as objects take seconds.

Of those that are to be placed all is read, of those that stay only what they take, and nothing of those that take
nothing. How many statements this needs does not depend on how many rows there are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select, true
from sqlalchemy.orm import QueryableAttribute, Session

from haulier.planner.placing.cluster import Rule, RuleKind
from haulier.planner.refusals import STARTED
from models import (
    Batch,
    BatchState,
    Evacuation,
    EvacuationState,
    EvacuationVm,
    MaintenanceWindow,
    Migration,
    MigrationState,
    Node,
    NodeState,
    PlacementRule,
    PlacementRuleNode,
    PlacementRuleVm,
    Replica,
    Storage,
    Vm,
    VmState,
    Volume,
    VolumeRole,
)
from models.transitions import OPEN_EVACUATION, OPEN_MIGRATION

_STARTED = tuple(map(VmState, STARTED))
_OUTWARD = tuple(state for state in OPEN_EVACUATION if state is not EvacuationState.RESTORING)
# SQLite takes some more numbers than these in one statement, and PostgreSQL twice as many.
_MOST_NUMBERS = 30_000


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node, with the names of its storages, each with whether it is shared."""

    id: int
    name: str
    state: NodeState
    network: str
    heartbeat_at: datetime | None
    facts: Mapping[str, Any]
    storages: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """A volume on its storage; `size_bytes` is 0 where nobody knows it yet."""

    role: VolumeRole
    size_bytes: int
    storage: str
    shared: bool


@dataclass(frozen=True, slots=True)
class VmRow:
    """A VM that is to be placed."""

    id: int
    name: str
    node_id: int
    state: VmState
    definition: dict[str, Any]
    pinned: dict[str, Any]
    volumes: tuple[VolumeRow, ...]


@dataclass(frozen=True, slots=True)
class StayingRow:
    """A VM that stays where it is: what it takes of a node if it `runs`. One that `starts` is off, and is to run again
    when its move is over.
    """

    id: int
    name: str
    node_id: int
    runs: bool
    starts: bool
    ram_bytes: int
    cpus: int


def load_nodes(session: Session) -> list[NodeRow]:
    """All nodes, by name."""
    storages: dict[int, dict[str, bool]] = defaultdict(dict)
    # In an order, because a solver's answer may hang on that.
    of_all = select(Storage.node_id, Storage.name, Storage.shared).order_by(Storage.node_id, Storage.name)
    for node_id, name, shared in session.execute(of_all):
        storages[node_id][name] = shared
    columns = (Node.id, Node.name, Node.state, Node.network, Node.heartbeat_at, Node.facts)
    found = session.execute(select(*columns).order_by(Node.name))
    return [
        NodeRow(row.id, row.name, row.state, row.network, row.heartbeat_at, row.facts, storages[row.id])
        for row in found
    ]


def load_vms(session: Session, ids: Collection[int]) -> list[VmRow]:
    """These VMs with their volumes, by name."""
    chosen = frozenset(ids)
    volumes: dict[int, list[VolumeRow]] = defaultdict(list)
    of_theirs = (
        select(Volume.vm_id, Volume.role, Volume.size_bytes, Storage.name, Storage.shared)
        .join(Storage, Storage.id == Volume.storage_id)
        .where(_among(Volume.vm_id, chosen))
        .order_by(Volume.id)
    )
    for vm_id, role, size_bytes, storage, shared in session.execute(of_theirs):
        volumes[vm_id].append(VolumeRow(role, size_bytes or 0, storage, shared))
    columns = (Vm.id, Vm.name, Vm.node_id, Vm.state, Vm.definition, Vm.pinned)
    found = session.execute(select(*columns).where(_among(Vm.id, chosen)).order_by(Vm.name))
    return [
        VmRow(row.id, row.name, row.node_id, row.state, row.definition, row.pinned, tuple(volumes[row.id]))
        for row in found
        if row.id in chosen
    ]


def _among(column: QueryableAttribute[Any], ids: Collection[int]) -> ColumnElement[bool]:
    """Only these, as far as one statement can say it: of more than that nearly all are wanted."""
    return column.in_(ids) if len(ids) <= _MOST_NUMBERS else true()


def load_starting(session: Session) -> frozenset[int]:
    """The VMs that were stopped for a move, and are to be started again."""
    stopped = select(EvacuationVm.vm_id).where(EvacuationVm.stopped_at.is_not(None))
    return frozenset(session.scalars(select(Vm.id).where(Vm.id.in_(stopped), Vm.state.not_in(_STARTED))))


def load_staying(session: Session, *, but: Collection[int], starting: Collection[int]) -> Iterator[StayingRow]:
    """The other VMs, as far as they take room, now or when they are `starting`, or a rule names them."""
    ruled = select(PlacementRuleVm.vm_id)
    query = select(
        Vm.id,
        Vm.name,
        Vm.node_id,
        Vm.state,
        # As words: a number that SQL itself made of it would end the whole query where a row was spoilt.
        Vm.pinned["ram_kib"].as_string(),
        Vm.definition["memory_mib"].as_string(),
        Vm.definition["cores"].as_string(),
        Vm.definition["sockets"].as_string(),
    ).where(or_(Vm.state.in_(_STARTED), Vm.id.in_(ruled), Vm.id.in_(starting)))
    chosen = frozenset(but)
    for vm_id, name, node_id, state, ram_kib, memory_mib, cores, sockets in session.execute(query):
        if vm_id not in chosen:
            ram_bytes = ram_bytes_of(ram_kib, memory_mib)
            cpus, starts = cpus_of(cores, sockets), vm_id in starting
            yield StayingRow(vm_id, name, node_id, state in STARTED or starts, starts, ram_bytes, cpus)


def ram_bytes_of(ram_kib: str | int | None, memory_mib: str | int | None) -> int:
    """What a VM has if it runs, and would have else."""
    return int(ram_kib or 0) * 1024 or int(memory_mib or 0) << 20


def cpus_of(cores: str | int | None, sockets: str | int | None) -> int:
    """The virtual CPUs of a VM."""
    return int(cores or 1) * int(sockets or 1)


@dataclass(frozen=True, slots=True)
class WayRow:
    """Where a VM is on its way to, or `waits` to be. It `is_held` where a person has to do something first."""

    target_id: int
    waits: bool
    is_held: bool


def load_ways(session: Session) -> dict[int, WayRow]:
    """The VMs that are on their way, or wait for it, each with its way; also those that are stopped for that first."""
    columns = (Migration.vm_id, Migration.target_id, Migration.state, Migration.needs_operator, Batch.state)
    query = select(*columns).outerjoin(Batch, Batch.id == Migration.batch_id).where(*_on_the_way())
    promised = {
        vm_id: WayRow(target_id, waits=True, is_held=False)
        for vm_id, target_id in session.execute(_promised())
        if target_id is not None
    }
    return promised | {
        vm_id: _way(target_id, waits=state is MigrationState.QUEUED, stuck=stuck, batch=batch)
        for vm_id, target_id, state, stuck, batch in session.execute(query)
    }


def _way(target_id: int, *, waits: bool, stuck: bool, batch: BatchState | None) -> WayRow:
    return WayRow(target_id, waits, stuck or (waits and batch not in (None, BatchState.OPEN)))


def _promised() -> Select[int, int | None]:
    """The VMs that are being stopped for their moves, or were just now, and their targets: nothing is filed yet."""
    filed = select(Migration.vm_id).where(*_on_the_way())
    return (
        select(EvacuationVm.vm_id, EvacuationVm.target_id)
        .join(Evacuation, Evacuation.id == EvacuationVm.evacuation_id)
        .join(Vm, Vm.id == EvacuationVm.vm_id)
        .where(
            EvacuationVm.stopped_at.is_not(None), EvacuationVm.problem.is_(None), EvacuationVm.target_id.is_not(None)
        )
        .where(Evacuation.state.in_(_OUTWARD), Vm.node_id == Evacuation.node_id, Vm.id.not_in(filed))
    )


def _on_the_way() -> tuple[ColumnElement[bool], ...]:
    return Migration.state.in_(OPEN_MIGRATION), Migration.replication_id.is_(None)


def load_incoming(session: Session, *, but: Collection[int]) -> Mapping[int, Mapping[str, int]]:
    """The bytes that are to be written to each storage of each target, but for these VMs: nothing to what is shared."""
    filed = select(Migration.vm_id, Migration.target_id).where(*_on_the_way())
    ways = filed.union_all(_promised()).subquery()
    query = (
        select(ways.c.vm_id, ways.c.target_id, Storage.name, func.sum(Volume.size_bytes))
        .select_from(ways)
        .join(Volume, Volume.vm_id == ways.c.vm_id)
        .join(Storage, Storage.id == Volume.storage_id)
        .where(Storage.shared.is_(False))
        .group_by(ways.c.vm_id, ways.c.target_id, Storage.name)
    )
    found, chosen = defaultdict[int, Counter[str]](Counter), frozenset(but)
    for vm_id, target_id, storage, size_bytes in session.execute(query):
        if vm_id not in chosen:
            found[target_id][storage] += int(size_bytes or 0)
    return found


def load_near(session: Session, ids: Collection[int], nodes: Iterable[NodeRow]) -> dict[int, frozenset[str]]:
    """Which of the nodes have a replica of each of these VMs."""
    names = {node.id: node.name for node in nodes}
    found: dict[int, set[str]] = defaultdict(set)
    # Told in full: the volumes of the replica's storage are others.
    query = (
        select(Volume.vm_id, Storage.node_id)
        .select_from(Replica)
        .join(Storage, Storage.id == Replica.storage_id)
        .join(Volume, Volume.id == Replica.volume_id)
        .where(_among(Volume.vm_id, ids))
    )
    for vm_id, node_id in session.execute(query):
        found[vm_id].add(names[node_id])
    return {vm_id: frozenset(there) for vm_id, there in found.items()}


def load_windows(session: Session) -> dict[int, datetime]:
    """When the next window of each node begins that has one.

    A window of a group closes none of its nodes: it empties one at a time, and the others are where its VMs go.
    """
    query = select(MaintenanceWindow.node_id, func.min(MaintenanceWindow.next_at)).group_by(MaintenanceWindow.node_id)
    return {node_id: next_at for node_id, next_at in session.execute(query) if node_id is not None and next_at}


def load_rules(session: Session, names: Mapping[int, str]) -> tuple[Rule, ...]:
    """All rules, by name."""
    guests: dict[int, set[str]] = defaultdict(set)
    for rule_id, vm in session.execute(
        select(PlacementRuleVm.rule_id, Vm.name).join(Vm, Vm.id == PlacementRuleVm.vm_id)
    ):
        guests[rule_id].add(vm)
    hosts: dict[int, set[str]] = defaultdict(set)
    for rule_id, node_id in session.execute(select(PlacementRuleNode.rule_id, PlacementRuleNode.node_id)):
        hosts[rule_id].add(names[node_id])
    columns = (PlacementRule.id, PlacementRule.name, PlacementRule.kind, PlacementRule.hard)
    return tuple(
        Rule(name, RuleKind(kind), frozenset(guests[rule_id]), frozenset(hosts[rule_id]), hard=hard)
        for rule_id, name, kind, hard in session.execute(select(*columns).order_by(PlacementRule.name))
    )
