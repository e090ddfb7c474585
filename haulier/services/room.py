"""What the limits leave at each gate, counted from the rows of those that are past it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session, aliased

from haulier.clock import now
from haulier.planner.admission import Room
from haulier.planner.labels import LabelRule, Labels, Rate
from haulier.planner.limits import MOVE_WORDS, Closed, Limits
from haulier.planner.refusals import closed_node, silent_node
from haulier.services.context import Context
from haulier.services.liveness import silent_s
from haulier.settings import Settings
from models import IS_AT_WORK, WAITS, Attempt, Gate, LimitScope, Migration, Node, NodeState, QueueLabel, QueueLimit

# Who decides about room excludes all others that do.
ADMISSION = 1
# By so much the clocks of hosts that work together may differ.
AHEAD_S = 60.0

source_node, target_node = aliased(Node), aliased(Node)


def load_room(context: Context, session: Session, gate: Gate) -> Room:
    """What the limits leave now at a gate. Syncs of replicas do not count."""
    limits = load_limits(context, session, gate)
    if gate is Gate.MOVE:
        # A node that is silent holds nobody back here: who is let through is undone then, which frees the rest.
        return Room(limits, _pairs(session, _moving()), words=MOVE_WORDS)
    closed, labels = _closed_nodes(context, session), _load_labels(session)
    return Room(limits, _pairs(session, _at_work()), closed=closed, labels=labels)


def _pairs(session: Session, query: Select[str, str, int | None]) -> list[tuple[str, str]]:
    return [(source, target) for source, target, replication in session.execute(query) if replication is None]


def _at_work() -> Select[str, str, int | None]:
    # Syncs are left out by us: asked to do so, PostgreSQL may take the index of all that are open.
    return (
        select(source_node.name, target_node.name, Migration.replication_id)
        .select_from(Migration)
        .join(source_node, Migration.source_id == source_node.id)
        .join(target_node, Migration.target_id == target_node.id)
        .where(IS_AT_WORK)
    )


def _moving() -> Select[str, str, int | None]:
    moving = (Attempt.finished_at.is_(None), Attempt.moving_at.is_not(None), Attempt.moved_at.is_(None))
    return _at_work().join(Attempt, Attempt.migration_id == Migration.id).where(*moving)


def load_limits(context: Context, session: Session, gate: Gate) -> Limits:
    """The limits of the settings, and the ones that the cluster, nodes and pairs have of their own."""
    usual = usual_limits(context.settings, gate)
    cluster, out, into, pair = usual.cluster, dict[str, int](), dict[str, int](), dict[tuple[str, str], int]()
    own = (
        select(QueueLimit.scope, QueueLimit.allowed, source_node.name, target_node.name)
        .outerjoin(source_node, QueueLimit.node_id == source_node.id)
        .outerjoin(target_node, QueueLimit.peer_id == target_node.id)
        .where(QueueLimit.gate == gate)
    )
    for scope, allowed, node, peer in session.execute(own):
        match scope:
            case LimitScope.CLUSTER:
                cluster = allowed
            case LimitScope.OUT:
                out[node] = allowed
            case LimitScope.IN:
                into[node] = allowed
            case LimitScope.PAIR:
                pair[node, peer] = allowed
    return Limits(cluster, usual.usual_out, usual.usual_in, usual.usual_pair, out, into, pair)


def usual_limits(settings: Settings, gate: Gate) -> Limits:
    """The limits of the settings."""
    if gate is Gate.BANDWIDTH:
        out, into = settings.bandwidth_out_bytes_per_s, settings.bandwidth_in_bytes_per_s
        return Limits(usual_out=out or None, usual_in=into or None)
    if gate is Gate.MOVE:
        return Limits(settings.max_moves, settings.max_moves_out, settings.max_moves_in)
    return Limits(settings.max_running, settings.max_out, settings.max_in, settings.max_pair)


def _load_labels(session: Session) -> Labels:
    """The rules, and when those of a label with a rate were begun: each try counts."""
    rules = {row.label: rule_of(row) for row in session.scalars(select(QueueLabel))}
    rates = {label: rule.rate for label, rule in rules.items() if rule.rate is not None}
    return Labels(rules, _begun(session, rates) if rates else {})


def rule_of(row: QueueLabel) -> LabelRule:
    """As the planner sees it."""
    if row.allowed is None or row.period_s is None:
        return LabelRule(row.paused)
    return LabelRule(row.paused, Rate(row.allowed, row.period_s))


def _begun(session: Session, rates: Mapping[str, Rate]) -> dict[str, list[float]]:
    """When those with these labels were begun, as far as it matters, in seconds from now; only if somebody waits."""
    moment = now()
    longest = timedelta(seconds=max(rate.period_s for rate in rates.values()))
    # Of another host, whose clock is a little ahead. What is farther ahead was begun before a clock was put back, and
    # when that was nobody knows.
    ahead = moment + timedelta(seconds=AHEAD_S)
    with_label = select(Migration.label).where(WAITS, Migration.label.in_(rates)).distinct()
    begun = (
        select(Migration.label, Attempt.started_at)
        .join(Migration, Migration.id == Attempt.migration_id)
        .where(
            Attempt.started_at.between(moment - longest, ahead), Migration.label.in_(list(session.scalars(with_label)))
        )
    )
    found: dict[str, list[float]] = {label: [] for label in rates}
    for label, at in session.execute(begun):
        found[str(label)].append((at - moment).total_seconds())
    return found


def _closed_nodes(context: Context, session: Session) -> Closed:
    """The nodes that cannot take part now. What goes to one that was declared lost is refused, and does not wait."""
    limit_s = context.settings.node_silent_after_s
    moment, limit = now(), timedelta(seconds=limit_s)
    heard = Node.heartbeat_at.between(moment - limit, moment + limit)
    found = session.scalars(
        select(Node).where(or_(Node.state != NodeState.ONLINE, Node.heartbeat_at.is_(None), ~heard))
    )
    sources, targets = dict[str, str](), dict[str, str]()
    for node in found:
        if node.state is NodeState.LOST:
            # Whatever waits to leave it or to go there is refused.
            continue
        if node.state is not NodeState.ONLINE:
            targets[node.name] = closed_node(node.name, node.state).message
        silent = silent_s(node, limit_s=limit_s)
        if silent is not None:
            sources[node.name] = targets[node.name] = silent_node(node.name, silent).message
    return Closed(sources, targets)
