"""What may hold a migration before it begins: limits, closed nodes, and how a hold says it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """How many may be at work at once. What has no number of its own has the usual one; None is no limit, 0 a pause.

    Nodes are named; a pair is source and target, in this order.
    """

    cluster: int | None = None
    usual_out: int | None = None
    usual_in: int | None = None
    usual_pair: int | None = None
    out: Mapping[str, int] = field(default_factory=dict)
    into: Mapping[str, int] = field(default_factory=dict)
    pair: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def out_of(self, node: str) -> int | None:
        """How many may leave a node."""
        return self.out.get(node, self.usual_out)

    def into_of(self, node: str) -> int | None:
        """How many may go to a node."""
        return self.into.get(node, self.usual_in)


@dataclass(frozen=True, slots=True)
class Hold:
    """What a migration waits for: a limit (`cluster`, `out`, `in`, `pair`, the `rate` of its label), or what else is in
    its way: a `node`, its `vm`, its `batch`, its `label`, another migration that it comes `after`, or the `delay` after
    a failure.

    `in_use` and `allowed` are the numbers of a limit.
    """

    limit: str
    text: str
    in_use: int | None = None
    allowed: int | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """Nodes that nothing can leave or reach now, each with the reason."""

    sources: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Words:
    """What those under the limits do, as a hold says it after their number."""

    cluster: str
    out: str
    into: str
    pair: str


PREPARE_WORDS = Words("are at work in the cluster", "leave {0}", "go to {1}", "go from {0} to {1}")
MOVE_WORDS = Words("move their RAM", "move their RAM out of {0}", "move it to {1}", "move it from {0} to {1}")
