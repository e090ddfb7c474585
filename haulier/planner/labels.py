"""What may begin by its label: nothing while that is paused, and so many in a time. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from haulier.planner.limits import Hold

# As people write them; the largest first.
_UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
# So that the moment is over for certain, however it was rounded.
_AFTERWARDS_S = 0.001


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `allowed` are begun in any `period_s` seconds."""

    allowed: int
    period_s: int

    @property
    def period(self) -> str:
        """The time as people write it, such as `1h` or `90s`."""
        unit, length = next((unit, length) for unit, length in _UNITS.items() if self.period_s % length == 0)
        return f"{self.period_s // length}{unit}"


@dataclass(frozen=True, slots=True)
class LabelRule:
    """What holds those with a label."""

    paused: bool = False
    rate: Rate | None = None


class Labels:
    """The labels that have a rule, and when those of a label with a rate were begun, as far as it matters: in seconds
    from now on, so that what is over is below 0. What was begun later than now, by another clock, was begun now.
    """

    def __init__(
        self,
        rules: Mapping[str, LabelRule] = MappingProxyType({}),
        begun: Mapping[str, Iterable[float]] = MappingProxyType({}),
    ) -> None:
        self._rules = rules
        self._begun = {label: sorted(min(0.0, at_s) for at_s in begun.get(label, ())) for label in rules}

    def hold(self, label: str | None, *, at_s: float = 0.0) -> Hold | None:
        """What its label says against one more; None if nothing does."""
        rule = self._rules.get(label) if label else None
        if rule is None:
            return None
        if rule.paused:
            return Hold("label", f"label {label} is paused")
        if rule.rate is None:
            return None
        begun = self._begun[str(label)]
        lately = len(begun) - bisect_right(begun, at_s - rule.rate.period_s)
        if lately < rule.rate.allowed:
            return None
        words = f"{lately} of label {label} were begun in {rule.rate.period}, {rule.rate.allowed} may be"
        return Hold("rate", words, lately, rule.rate.allowed)

    def take(self, label: str | None, *, at_s: float = 0.0) -> None:
        """One more is begun."""
        if label in self._begun:
            self._begun[label].append(at_s)

    def full(self, *, at_s: float = 0.0) -> list[str]:
        """The labels of which nothing more may be begun then."""
        return [label for label in self._rules if self.hold(label, at_s=at_s) is not None]

    def paused(self) -> list[str]:
        """The labels of which nothing is begun until somebody says so."""
        return [label for label, rule in self._rules.items() if rule.paused]

    def next_free_s(self, full: Iterable[str]) -> float | None:
        """When the next of these, as far as their rate holds them, lets one more begin; None if there are none."""
        rates = {label: self._rules[label].rate for label in full if not self._rules[label].paused}
        free = (self._begun[label][-rate.allowed] + rate.period_s for label, rate in rates.items() if rate)
        soonest = min(free, default=None)
        return None if soonest is None else soonest + _AFTERWARDS_S
