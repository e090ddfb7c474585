"""How the bytes per second of nodes and links are shared among all that crosses them. Pure.

Shares are max-min fair: all grow alike until a budget is used up; whoever crosses that has its share then, and the
others go on growing. A share that shrinks does so at once, and what it leaves is given to others only when its owner
has said that it uses no more, so that at no moment more is given than a budget allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from haulier.planner.limits import Limits


@dataclass(frozen=True, slots=True)
class Flow:
    """What one step carries from one node to another, in bytes per second; None is no limit.

    `share` is what it may use, `using` what its tools were told last. One that is `fixed` keeps what it uses: its tools
    take no new limit. If that is none, it is counted as if it had a fair share: no budget can be held beside it.
    """

    id: int
    source: str
    target: str
    share: int | None = 0
    using: int | None = 0
    fixed: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether nothing can be changed about it any more."""
        return self.fixed and bool(self.using)

    @property
    def begins_fixed(self) -> bool:
        """Whether it is about to get what it will keep."""
        return self.fixed and self.using == 0


@dataclass(slots=True)
class _Budget:
    """A budget, what is left of it, and those of the flows that cross it."""

    allowed: float
    flows: set[int] = field(default_factory=set)

    @property
    def level(self) -> float:
        """What each of them gets if they share it alike."""
        return max(0, self.allowed // len(self.flows))


def fair_shares(flows: Sequence[Flow], budgets: Limits) -> dict[int, int | None]:
    """The share of each flow when all have been told; None where no budget is in its way."""
    shares = {flow.id: flow.using if flow.is_settled else None for flow in flows}
    open_ = _budgets(flows, budgets)
    for flow in flows:
        if flow.is_settled:
            _freeze(open_, flow.id, _number(flow.using))
    while open_ := [budget for budget in open_ if budget.flows]:
        tightest = min(open_, key=lambda budget: budget.level)
        level = tightest.level
        for number in sorted(tightest.flows):
            shares[number] = int(level)
            _freeze(open_, number, level)
    return shares


def _freeze(budgets: Iterable[_Budget], number: int, share: float) -> None:
    """The flow has its share and does not grow any more."""
    for budget in budgets:
        if number in budget.flows:
            budget.flows.discard(number)
            budget.allowed = max(0, budget.allowed - share)


def next_shares(flows: Sequence[Flow], budgets: Limits) -> dict[int, int | None]:
    """The share of each flow from now on: what it must give at once, what it may take only as far as it is free.

    One that is fixed from its begin gets no more than half of what is free then, so that others find something as long
    as it lasts.
    """
    fair = {number: _number(share) for number, share in fair_shares(flows, budgets).items()}
    granted = {flow.id: min(_number(flow.share), fair[flow.id]) for flow in flows}
    granted |= {flow.id: 0 for flow in flows if flow.begins_fixed}
    granted |= {flow.id: fair[flow.id] for flow in flows if flow.is_settled}
    taken = {flow.id: max(granted[flow.id], 0 if flow.fixed else _number(flow.using)) for flow in flows}
    crossed = _budgets(flows, budgets)
    for flow in sorted(flows, key=lambda flow: granted[flow.id]):
        free = min((_free(budget, taken) for budget in crossed if flow.id in budget.flows), default=math.inf)
        if flow.begins_fixed:
            free = free if free == math.inf else free // 2
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
