"""Figures of a simulated queue, and the tables that are made of them."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.report import table


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment of a run, in seconds of its clock: how many migrations have ended, what was done to the database by
    then, and what each process has taken: seconds of a core, MiB of RAM.
    """

    at_s: float
    ended: int
    counts: Mapping[str, int]
    cpu_s: Mapping[str, float]
    memory_mib: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What lies between two marks."""

    first: Mark
    last: Mark

    @property
    def ended(self) -> int:
        """How many migrations have ended in it."""
        return self.last.ended - self.first.ended

    def counted(self, what: str) -> float:
        """How often something was done for a migration."""
        return (self.last.counts[what] - self.first.counts[what]) / self.ended

    def cpu_ms(self, part: str) -> float:
        """What a migration took of a core in one part."""
        return (self.last.cpu_s[part] - self.first.cpu_s[part]) * 1000 / self.ended

    def rate(self) -> float:
        """Migrations that ended in a second."""
        return self.ended / (self.last.at_s - self.first.at_s)


@dataclass(slots=True)
class Result:
    """One size: figures of a run. Rates are per second, times in milliseconds."""

    vms: int
    empty_rate: float = 0.0
    step_rate: float = 0.0
    migration_rate: float = 0.0
    filing_ms: float = 0.0
    hop_alone: float = 0.0
    hops: list[float] = field(default_factory=list)
    alone_ms: float = 0.0
    heartbeat_ms: float = 0.0
    states: dict[str, int] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)

    @property
    def whole(self) -> Stretch:
        """From the first mark to the last."""
        return Stretch(self.marks[0], self.marks[-1])


def page(results: Sequence[Result], database: str, *, nodes: int) -> str:
    """A column for each size."""

    def row(what: str, figure: Callable[[Result], str]) -> list[str]:
        return [what, *(figure(result) for result in results)]

    def memory(part: str) -> Callable[[Result], str]:
        return lambda each: " · ".join(f"{mark.memory_mib[part]:.0f}" for mark in each.marks)

    def cpu(part: str) -> Callable[[Result], str]:
        return lambda each: f"{each.whole.cpu_ms(part):.0f}"

    parts = list(results[0].marks[0].memory_mib)
    rows = [
        row("empty Celery tasks a second", lambda each: f"{each.empty_rate:.0f}"),
        row("steps a second", lambda each: f"{each.step_rate:.0f}"),
        row("of the empty tasks", lambda each: f"**{each.step_rate / each.empty_rate:.0%}**"),
        row("migrations a second", lambda each: f"{each.migration_rate:.1f}"),
        row("statements a migration", lambda each: f"{each.whole.counted('statements'):.0f}"),
        row("commits a migration", lambda each: f"{each.whole.counted('commits'):.0f}"),
        *(row(f"{part}, ms of a core a migration", cpu(part)) for part in parts),
        row("filing, ms a migration", lambda each: f"{each.filing_ms:.1f}"),
        row("a migration alone, ms", lambda each: f"{each.alone_ms:.0f}"),
        row("a hop of it, ms", lambda each: f"{each.hop_alone:.1f}"),
        row("a hop in the crowd, median · 95 %, ms", lambda each: f"{_median_and_95(each.hops)}"),
        row("a heartbeat, ms", lambda each: f"{each.heartbeat_ms:.1f}"),
        *(row(f"{part}, MiB", memory(part)) for part in parts),
        row("ended", lambda each: ", ".join(f"{number:,} {state}" for state, number in sorted(each.states.items()))),
    ]
    head = [f"{database}, {os.cpu_count()} cores, {nodes:,} nodes", *(f"{each.vms:,} VMs" for each in results)]
    return table(head, rows)


def course(result: Result) -> str:
    """A column for each stretch between two marks; the first is what it begins with."""
    stretches = [Stretch(*pair) for pair in itertools.pairwise(result.marks)]
    parts = list(result.marks[0].memory_mib)

    def row(what: str, figure: Callable[[Stretch], str]) -> list[str]:
        return [what, *map(figure, stretches)]

    def cpu(part: str) -> Callable[[Stretch], str]:
        return lambda each: f"{each.cpu_ms(part):.0f}"

    def memory(part: str) -> Callable[[Stretch], str]:
        return lambda each: f"{each.last.memory_mib[part]:.0f}"

    rows = [
        row("migrations a second", lambda each: f"{each.rate():.1f}"),
        row("statements a migration", lambda each: f"{each.counted('statements'):.0f}"),
        row("commits a migration", lambda each: f"{each.counted('commits'):.0f}"),
        *(row(f"{part}, ms of a core a migration", cpu(part)) for part in parts),
        *(row(f"{part}, MiB at its end", memory(part)) for part in parts),
    ]
    return table([f"{result.vms:,} VMs", *(f"{each.first.ended:,} to {each.last.ended:,}" for each in stretches)], rows)


def _median_and_95(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} · {statistics.quantiles(values, n=20)[-1]:.0f}"
