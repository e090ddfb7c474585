"""How long few moves take to be found in a cluster that is uneven, and what they take away, on one core."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from bench.crowded import uneven
from bench.report import table
from haulier.planner.placing.rebalance import rebalance

# VMs, nodes, moves.
SIZES = ((60, 8, 5), (1000, 100, 10), (10_000, 1000, 10), (10_000, 1000, 100))
FILL = 0.7
SEEDS = range(1, 6)


@dataclass(frozen=True, slots=True)
class Row:
    """One cluster: seconds of the processor, the moves that were found, and the part of the imbalance that is left."""

    seconds: float
    moves: int
    left: float


def measure() -> str:
    """The table of docs/performance.md: medians of five clusters of each kind."""
    head = ["VMs, nodes", "moves asked for", "found", "s", "imbalance left"]
    rows = []
    for guests, hosts, most in SIZES:
        found = [_one(guests, hosts, most, seed) for seed in SEEDS]
        seconds = [row.seconds for row in found]
        rows.append(
            [
                f"{guests:,}, {hosts:,}",
                str(most),
                f"{statistics.median(row.moves for row in found):.0f}",
                f"{statistics.median(seconds):.2f} (most {max(seconds):.1f})",
                f"{statistics.median(row.left for row in found):.0%}",
            ]
        )
    return table(head, rows)


def _one(guests: int, hosts: int, most: int, seed: int) -> Row:
    cluster = uneven(guests=guests, hosts=hosts, fill=FILL, seed=seed)
    begun = time.process_time()
    found = rebalance(cluster, most=most)
    return Row(time.process_time() - begun, len(found.moves), found.left)
