"""The question of who goes to which of a few hosts, as a mixed-integer model for HiGHS. Pure.

a guest has one place, or none at its price              Σ places + homeless = 1
a host's RAM, CPUs and storages hold what is put there   Σ needs ≤ left
rules                                                    one of a kind a host; all where the first is
what a host's RAM costs                                  a chain of tangents below taken² / size
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from highspy import Highs, HighsLp, HighsModelStatus, HighsSolution, HighsVarType, MatrixFormat, kHighsInf

from haulier.planner.placing.arrangement import WISH, Arrangement, homeless_cost
from haulier.planner.placing.cluster import Guest, Host, Rule, RuleKind

_TANGENTS = 20
_NODES = 100
_GAP = 0.002
_MIB = float(1 << 20)
_ENDED = (HighsModelStatus.kOptimal, HighsModelStatus.kSolutionLimit)


@dataclass(slots=True)
class _Columns:
    cost: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    kinds: list[HighsVarType] = field(default_factory=list)
    start: list[float] = field(default_factory=list)

    def add(self, cost: float, *, upper: float = 1.0, whole: bool = True, start: float = 0.0) -> int:
        self.cost.append(cost)
        self.upper.append(upper)
        self.kinds.append(HighsVarType.kInteger if whole else HighsVarType.kContinuous)
        self.start.append(start)
        return len(self.cost) - 1


@dataclass(slots=True)
class _Rows:
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    begins: list[int] = field(default_factory=lambda: [0])
    columns: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)

    def add(self, terms: Sequence[tuple[int, float]], *, lower: float = -kHighsInf, upper: float = kHighsInf) -> None:
        self.lower.append(lower)
        self.upper.append(upper)
        self.columns += [column for column, _ in terms]
        self.factors += [factor for _, factor in terms]
        self.begins.append(len(self.columns))


class _Model:
    """The columns and rows of one neighbourhood: `now` as it is, `without` its guests."""

    def __init__(self, arrangement: Arrangement, guests: Sequence[Guest], hosts: Sequence[Host]) -> None:
        self.guests, self.hosts = guests, hosts
        self.now = arrangement
        self.without = arrangement.copy()
        for guest in guests:
            self.without.take(guest)
        self.columns, self.rows = _Columns(), _Rows()
        self.homeless = dict[str, int]()
        self.places = dict(self._place_columns())
        self._homes()
        for host in hosts:
            self._room(host)
        for rule in arrangement.cluster.rules:
            self._rule(rule)

    def _place_columns(self) -> Iterator[tuple[tuple[str, str], int]]:
        for guest in self.guests:
            for host in self.hosts:
                if self.without.never(guest, host) is None:
                    start = float(self.now.places.get(guest.name) == host.name)
                    cost = self.without.crossing(guest, host.name)
                    yield (guest.name, host.name), self.columns.add(cost, start=start)

    def _homes(self) -> None:
        for guest in self.guests:
            start = float(guest.name not in self.now.places)
            self.homeless[guest.name] = homeless = self.columns.add(homeless_cost(guest), start=start)
            terms = [(column, 1.0) for host in self.hosts if (column := self._column(guest.name, host)) is not None]
            self.rows.add([*terms, (homeless, 1.0)], lower=1.0, upper=1.0)

    def _column(self, guest: str, host: Host) -> int | None:
        return self.places.get((guest, host.name))

    def _room(self, host: Host) -> None:
        there = [(guest, column) for guest in self.guests if (column := self._column(guest.name, host)) is not None]
        running = [(guest, column) for guest, column in there if guest.runs]
        self._ram(host, [(column, guest.ram_bytes / _MIB) for guest, column in running])
        cpus = [(column, float(guest.cpus)) for guest, column in running]
        self.rows.add(cpus, upper=max(host.cpus - self.without.cpus_taken(host.name), 0.0))
        for name, storage in host.storages.items():
            sizes = [(column, guest.needs(host.name).get(name, 0)) for guest, column in there]
            needs = [(column, size / _MIB) for column, size in sizes if size]
            if needs and not storage.shared:
                left = storage.free_bytes - self.without.storage_taken(host.name, name)
                self.rows.add(needs, upper=max(left / _MIB, 0.0))

    def _ram(self, host: Host, needs: list[tuple[int, float]]) -> None:
        """In MiB. The tangents of taken² / size touch it at each twentieth of the size."""
        taken, size = self.without.ram_taken(host.name) / _MIB, max(host.ram_bytes / _MIB, 1.0)
        self.rows.add(needs, upper=max(size - taken, 0.0))
        full = self.now.ram_taken(host.name) / _MIB
        slopes = [number / _TANGENTS for number in range(_TANGENTS + 1)]
        start = max(2 * slope * full - slope**2 * size for slope in slopes)
        cost = self.columns.add(self.now.balance_scale * _MIB, upper=kHighsInf, whole=False, start=start)
        for slope in slopes:
            lower = 2 * slope * taken - slope**2 * size
            self.rows.add([(cost, 1.0), *((column, -2 * slope * need) for column, need in needs)], lower=lower)

    def _rule(self, rule: Rule) -> None:
        names = [guest.name for guest in self.guests if guest.name in rule.guests]
        if not names:
            return
        if rule.kind is RuleKind.APART:
            self._apart(rule, names)
        elif rule.kind is RuleKind.TOGETHER:
            self._together(rule, names)
        elif not rule.hard:
            for name in names:
                for host in self.hosts:
                    wrong = (host.name in rule.hosts) == (rule.kind is RuleKind.NOT_ON)
                    if wrong and (column := self._column(name, host)) is not None:
                        self.columns.cost[column] += WISH

    def _apart(self, rule: Rule, names: list[str]) -> None:
        there = self.without.members(rule)
        for host in self.hosts:
            terms = [(column, 1.0) for name in names if (column := self._column(name, host)) is not None]
            already = there.get(host.name, 0)
            if rule.hard:
                self.rows.add(terms, upper=max(1.0 - already, 0.0))
            else:
                too_many = max(self.now.members(rule).get(host.name, 0) - 1, 0)
                extra = self.columns.add(WISH, upper=kHighsInf, whole=False, start=float(too_many))
                self.rows.add([*terms, (extra, -1.0)], upper=1.0 - already)

    def _together(self, rule: Rule, names: list[str]) -> None:
        """A host is used by the group if one of it is there."""
        there, now = self.without.members(rule), self.now.members(rule)
        used = list[tuple[int, float]]()
        for host in self.hosts:
            start = float(bool(now.get(host.name)))
            price = 0.0 if rule.hard or there.get(host.name) else WISH
            column = self.columns.add(price, start=start)
            for name in names:
                if (place := self._column(name, host)) is not None:
                    self.rows.add([(place, 1.0), (column, -1.0)], upper=0.0)
            if not there.get(host.name):
                used.append((column, 1.0))
        if rule.hard:
            self.rows.add(used, upper=0.0 if there else 1.0)
            # One that goes without the others would be no better than none.
            for one, other in pairwise(names):
                self.rows.add([(self.homeless[one], 1.0), (self.homeless[other], -1.0)], lower=0.0, upper=0.0)

    def lp(self) -> HighsLp:
        columns, rows, lp = self.columns, self.rows, HighsLp()
        lp.num_col_, lp.num_row_ = len(columns.cost), len(rows.lower)
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = columns.cost, [0.0] * len(columns.cost), columns.upper
        lp.integrality_ = columns.kinds
        lp.row_lower_, lp.row_upper_ = rows.lower, rows.upper
        lp.a_matrix_.format_ = MatrixFormat.kRowwise
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = rows.begins, rows.columns, rows.factors
        return lp


def solve(
    arrangement: Arrangement, guests: Sequence[Guest], hosts: Sequence[Host], *, time_s: float
) -> dict[str, str] | None:
    """The best places of these guests on these hosts, the others staying as they are; who has none is not in it.

    None if the time was over before.
    """
    model = _Model(arrangement, guests, hosts)
    solver = Highs()  # type: ignore[no-untyped-call]  # its own annotation is not whole
    options: Mapping[str, bool | int | float] = {
        "output_flag": False, "log_to_console": False, "threads": 1, "random_seed": 1, "mip_rel_gap": _GAP,
        "mip_max_nodes": _NODES, "time_limit": time_s,
    }  # fmt: skip
    for name, value in options.items():
        solver.setOptionValue(name, value)
    solver.passModel(model.lp())
    start = HighsSolution()
    start.col_value = model.columns.start
    solver.setSolution(start)
    solver.run()
    if solver.getModelStatus() not in _ENDED:
        return None
    values = solver.getSolution().col_value
    return {guest: host for (guest, host), column in model.places.items() if values[column] > 0.5}
