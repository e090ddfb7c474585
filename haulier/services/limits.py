"""The limits of the queue, as people set and see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import select

from haulier.errors import Refused
from haulier.planner.labels import Rate
from haulier.planner.limits import Limits
from haulier.services.bandwidth import divide_anew
from haulier.services.context import Context, Unit
from haulier.services.labels import change_rates, list_labels
from haulier.services.lookup import find_node
from haulier.services.room import ADMISSION, load_limits
from haulier.services.waiting import make_room
from haulier.settings import LEAST_BUDGET, MOST_BUDGET
from models import Gate, LimitScope, QueueLimit

# Any number that a person could mean.
MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class LimitChange:
    """One limit: of a node for the scopes `out` and `in`, of source and target for `pair`, of none for the cluster.

    `gate` is what it is a limit of: migrations at work, guests whose RAM is moved, or bytes per second. `allowed` None
    goes back to the usual number. Raises Refused for what is no number of those.
    """

    scope: LimitScope
    nodes: tuple[str, ...]
    allowed: int | None
    gate: Gate = Gate.PREPARE

    def __post_init__(self) -> None:
        if self.allowed is None:
            return
        if self.gate is Gate.BANDWIDTH and not LEAST_BUDGET <= self.allowed <= MOST_BUDGET:
            hint = "1M or more, or `usual`; `haulier queue set --max-moves 0` begins no more."
            raise Refused("bad_limit", f"nothing can share {self.allowed} bytes/s", hint)
        if self.gate is not Gate.BANDWIDTH and not 0 <= self.allowed <= MOST:
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
    row = unit.session.scalar(select(QueueLimit).filter_by(gate=change.gate, scope=change.scope, **place))
    if row is None and change.allowed is not None:
        unit.session.add(QueueLimit(gate=change.gate, scope=change.scope, allowed=change.allowed, **place))
    elif row is not None and change.allowed is None:
        unit.session.delete(row)
    elif row is not None and change.allowed is not None:
        row.allowed = change.allowed
    node = change.nodes[0] if change.nodes else None
    about: dict[str, Any] = {"gate": change.gate, "scope": change.scope, "nodes": list(change.nodes)}
    unit.note("limit.changed", node=node, **about, allowed=change.allowed)


def set_limits(
    context: Context, changes: Sequence[LimitChange], *, rates: Mapping[str, Rate | None] = MappingProxyType({})
) -> dict[str, Any]:
    """Change limits of the cluster and of pairs, and rates of labels.

    Returns all limits; raises Refused, and nothing is changed then.
    """
    with context.unit() as unit:
        change_limits(context, unit, changes)
        change_rates(unit, rates)
    divide_anew(context)
    return show_limits(context)


def show_limits(context: Context) -> dict[str, Any]:
    """All limits by gate: the cluster's, the usual ones, and those that nodes and pairs have of their own; and what
    holds the `labels`.
    """
    with context.database.read() as session:
        limits: dict[str, Any] = {gate.value: _document(load_limits(context, session, gate)) for gate in Gate}
        return {**limits, "labels": list_labels(session)}


def _document(limits: Limits) -> dict[str, Any]:
    return {
        "cluster": limits.cluster,
        "usual": {"out": limits.usual_out, "in": limits.usual_in, "pair": limits.usual_pair},
        "out": dict(limits.out),
        "in": dict(limits.into),
        "pair": [{"source": pair[0], "target": pair[1], "max": allowed} for pair, allowed in limits.pair.items()],
    }
