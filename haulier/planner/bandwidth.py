"""How the bytes per second of nodes and links are shared among all that crosses them. Pure.

Shares are max-min fair: all grow alike until a budget is used up; whoever crosses that has its share then, and the
others go on growing. A share that shrinks does so at once, and what it leaves is given to others only when its owner
has said that it uses no more, so that at no moment more is used than a budget allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from haulier.planner.admission import Limits


@dataclass(frozen=True, slots=True)
class Flow:
    """What one step carries from one node to another, in bytes per second; None is no limit.

    `share` is what it may use, `using` what its tools were told last.
    """

    id: int
    source: str
    target: str
    share: int | None = 0
    using: int | None = 0


@dataclass(slots=True)
class _Budget:
    """A budget, what is left of it, and those of the flows that cross it."""

    allowed: float
    flows: set[int] = field(default_factory=set)

    @property
    def level(self) -> float:
        """What each of them gets if they share it alike."""
        return self.allowed // len(self.flows)


def fair_shares(flows: Sequence[Flow], budgets: Limits) -> dict[int, int | None]:
    """The share of each flow when all have been told; None where no budget is in its way."""
    shares: dict[int, int | None] = {flow.id: None for flow in flows}
    open_ = _budgets(flows, budgets)
    while open_:
        tightest = min(open_, key=lambda budget: budget.level)
        level = tightest.level
        for number in sorted(tightest.flows):
            shares[number] = int(level)
            for budget in open_:
                if number in budget.flows:
                    budget.flows.discard(number)
                    budget.allowed -= level
        open_ = [budget for budget in open_ if budget.flows]
    return shares


def next_shares(flows: Sequence[Flow], budgets: Limits) -> dict[int, int | None]:
    """The share of each flow from now on: what it must give at once, what it may take only as far as it is free."""
    fair = {number: _number(share) for number, share in fair_shares(flows, budgets).items()}
    granted = {flow.id: min(_number(flow.share), fair[flow.id]) for flow in flows}
    taken = {flow.id: max(_number(flow.using), granted[flow.id]) for flow in flows}
    crossed = _budgets(flows, budgets)
    for flow in sorted(flows, key=lambda flow: granted[flow.id]):
        free = min((_free(budget, taken) for budget in crossed if flow.id in budget.flows), default=math.inf)
        if free > 0 or granted[flow.id] < taken[flow.id] < math.inf:
            granted[flow.id] = max(granted[flow.id], min(fair[flow.id], taken[flow.id] + max(free, 0)))
            taken[flow.id] = max(taken[flow.id], granted[flow.id])
    return {number: None if share == math.inf else int(share) for number, share in granted.items()}


def _free(budget: _Budget, taken: dict[int, float]) -> float:
    return budget.allowed - sum(taken[number] for number in budget.flows)


def _budgets(flows: Iterable[Flow], budgets: Limits) -> list[_Budget]:
    found: dict[tuple[str, ...], _Budget] = {}
    for flow in flows:
        pair = (flow.source, flow.target)
        crossed = (
            (("cluster",), budgets.cluster),
            (("out", flow.source), budgets.out_of(flow.source)),
            (("in", flow.target), budgets.into_of(flow.target)),
            (("pair", *pair), budgets.pair.get(pair, budgets.usual_pair)),
        )
        for place, allowed in crossed:
            if allowed is not None:
                found.setdefault(place, _Budget(allowed)).flows.add(flow.id)
    return list(found.values())


def _number(share: int | None) -> float:
    return math.inf if share is None else share
