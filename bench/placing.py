"""How good the places of an emptied node's VMs are, and how long it takes to find them, on one core."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.crowded import crowded
from bench.report import table
from haulier.planner.placing.greedy import arrange
from haulier.planner.placing.search import improve

SIZES = ((12, 3), (60, 8), (200, 20), (1000, 100))
# Of the RAM that is free.
FILLS = (0.7, 0.95, 0.99)
SEEDS = range(1, 6)
# Long enough to see when the search ends by itself.
_TIME_S = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """One cluster: seconds of the processor, VMs without a place, and by how much it may cost more than the best."""

    start_s: float
    search_s: float
    left_by_start: int
    left: int
    gap: float | None


def measure() -> str:
    """The table of docs/performance.md: medians of five clusters of each kind; of what is left out, the sums."""
    head = ["VMs, nodes, of the free RAM", "start, s", "search, s", "left out by the start", "in the end", "gap"]
    rows = []
    for guests, hosts in SIZES:
        for fill in FILLS:
            found = [_one(guests, hosts, fill, seed) for seed in SEEDS]
            rows.append([f"{guests:,}, {hosts}, {fill:.0%}", *_figures(found)])
    return table(head, rows)


def _one(guests: int, hosts: int, fill: float, seed: int) -> Row:
    cluster = crowded(guests=guests, hosts=hosts, fill=fill, seed=seed)
    begun = time.process_time()
    start = arrange(cluster)
    placed = time.process_time()
    best = improve(start, clock=time.process_time, time_s=_TIME_S).arrangement
    searched = time.process_time()
    gap = None if best.homeless else best.cost() / best.bound() - 1
    return Row(placed - begun, searched - placed, len(start.homeless), len(best.homeless), gap)


def _figures(found: Sequence[Row]) -> list[str]:
    gaps = [row.gap for row in found if row.gap is not None]
    return [
        f"{statistics.median(row.start_s for row in found):.2f}",
        f"{statistics.median(row.search_s for row in found):.2f} (most {max(row.search_s for row in found):.1f})",
        str(sum(row.left_by_start for row in found)),
        str(sum(row.left for row in found)),
        f"{max(gaps):.2%}" if gaps else "–",
    ]
