"""The limits of the queue: set by people, and held against what is at work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, aliased

from haulier.clock import now
from haulier.errors import Refused
from haulier.planner.admission import Closed, Limits, Room
from haulier.planner.refusals import silent_node
from haulier.services.context import Context, Unit
from haulier.services.liveness import silent_s
from haulier.services.lookup import find_node
from haulier.services.waiting import make_room
from models import IS_AT_WORK, Gate, LimitScope, Migration, Node, NodeState, QueueLimit

# Who decides about room excludes all others that do.
ADMISSION = 1
# Any number that a person could mean.
MOST = 1_000_000


def load_room(context: Context, session: Session) -> Room:
    """What the limits leave now. Syncs of replicas do not count."""
    source, target = aliased(Node), aliased(Node)
    at_work = (
        select(source.name, target.name)
        .select_from(Migration)
        .join(source, Migration.source_id == source.id)
        .join(target, Migration.target_id == target.id)
        .where(IS_AT_WORK, Migration.replication_id.is_(None))
    )
    pairs = [(row[0], row[1]) for row in session.execute(at_work)]
    return Room(load_limits(context, session), pairs, closed=_closed(context, session))


def load_limits(context: Context, session: Session) -> Limits:
    """The limits of the settings, and the ones that nodes and pairs have of their own."""
    settings = context.settings
    cluster, out, into, pair = settings.max_running, dict[str, int](), dict[str, int](), dict[tuple[str, str], int]()
    for row in session.scalars(select(QueueLimit).where(QueueLimit.gate == Gate.PREPARE)):
        node, peer = row.node.name if row.node else "", row.peer.name if row.peer else ""
        match row.scope:
            case LimitScope.CLUSTER:
                cluster = row.allowed
            case LimitScope.OUT:
                out[node] = row.allowed
            case LimitScope.IN:
                into[node] = row.allowed
            case LimitScope.PAIR:
                pair[node, peer] = row.allowed
    return Limits(cluster, settings.max_out, settings.max_in, settings.max_pair, out, into, pair)


def _closed(context: Context, session: Session) -> Closed:
    """The nodes that cannot take part now. What goes to one that was declared lost is refused, and does not wait."""
    limit_s = context.settings.node_silent_after_s
    late = Node.heartbeat_at < now() - timedelta(seconds=limit_s)
    found = session.scalars(select(Node).where(or_(Node.state != NodeState.ONLINE, Node.heartbeat_at.is_(None), late)))
    sources, targets = dict[str, str](), dict[str, str]()
    for node in found:
        if node.state is NodeState.LOST:
            sources[node.name] = f"node {node.name} was declared lost"
            continue
        if node.state is NodeState.MAINTENANCE:
            targets[node.name] = f"node {node.name} is in maintenance"
        silent = silent_s(node, limit_s=limit_s)
        if silent is not None:
            sources[node.name] = targets[node.name] = silent_node(node.name, silent).message
    return Closed(sources, targets)


@dataclass(frozen=True, slots=True)
class LimitChange:
    """One limit: of a node for the scopes `out` and `in`, of source and target for `pair`, of none for the cluster.

    `allowed` None goes back to the usual number. Raises Refused for what is no number of migrations.
    """

    scope: LimitScope
    nodes: tuple[str, ...]
    allowed: int | None

    def __post_init__(self) -> None:
        if self.allowed is not None and not 0 <= self.allowed <= MOST:
            hint = f"0 (nothing begins) to {MOST}, or `usual`."
            raise Refused("bad_limit", f"a limit of {self.allowed} is none", hint)


def change_limits(context: Context, unit: Unit, changes: Iterable[LimitChange]) -> None:
    """Write limits. What is at work goes on, also when it is more than that. Raises Refused for unknown nodes."""
    context.database.exclude_others(unit.session, ADMISSION)
    for change in changes:
        _change(unit, change)
    unit.session.flush()
    make_room(unit)


def _change(unit: Unit, change: LimitChange) -> None:
    nodes = [find_node(unit.session, name) for name in change.nodes]
    place = dict(zip(("node_id", "peer_id"), [node.id for node in nodes], strict=False))
    row = unit.session.scalar(select(QueueLimit).filter_by(gate=Gate.PREPARE, scope=change.scope, **place))
    if row is None and change.allowed is not None:
        unit.session.add(QueueLimit(gate=Gate.PREPARE, scope=change.scope, allowed=change.allowed, **place))
    elif row is not None and change.allowed is None:
        unit.session.delete(row)
    elif row is not None and change.allowed is not None:
        row.allowed = change.allowed
    node = change.nodes[0] if change.nodes else None
    unit.note("limit.changed", node=node, scope=change.scope, nodes=list(change.nodes), allowed=change.allowed)


def set_limits(context: Context, changes: Sequence[LimitChange]) -> dict[str, Any]:
    """Change limits of the cluster and of pairs. Returns all limits; raises Refused, and nothing is changed then."""
    with context.unit() as unit:
        change_limits(context, unit, changes)
    return show_limits(context)


def show_limits(context: Context) -> dict[str, Any]:
    """All limits of the queue: the cluster's, the usual ones, and those that nodes and pairs have of their own."""
    with context.database.read() as session:
        limits = load_limits(context, session)
    return {
        "max_running": limits.cluster,
        "usual": {"max_out": limits.usual_out, "max_in": limits.usual_in, "max_pair": limits.usual_pair},
        "out": dict(limits.out),
        "in": dict(limits.into),
        "pair": [{"source": pair[0], "target": pair[1], "max": allowed} for pair, allowed in limits.pair.items()],
    }


def limits_of(limits: Limits, node: str) -> dict[str, int | None]:
    """A node's two limits as contract.md shows them."""
    return {"max_out": limits.out.get(node, limits.usual_out), "max_in": limits.into.get(node, limits.usual_in)}
