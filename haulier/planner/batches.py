"""Whether a batch can be filed: what is wrong with it as a whole, whatever the single VMs may be. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from graphlib import CycleError, TopologicalSorter

from haulier.definition.batch_file import AUTO, BatchEntry, at_line
from haulier.definition.values import label_name
from haulier.errors import Problem, Refused, meant
from haulier.planner.admission import MOST_PRIORITY

# To find the name that was meant takes a while among thousands.
_MOST_SEARCHES = 20
_USUAL_POLICY = "all_or_nothing_checks"


@dataclass(frozen=True, slots=True)
class Policy:
    """What is done about migrations that cannot be, or fail.

    `all_or_nothing`: if one is refused when the batch is filed, none is filed; else those are refused and the others go
    on. After `stop_after` failures nothing more is begun; None is never.
    """

    all_or_nothing: bool
    stop_after: int | None = None


def read_policy(word: str | None) -> Policy:
    """`all_or_nothing_checks` (the usual one), `go_on`, or `stop_after: N`. Raises Refused for other words."""
    match re.fullmatch(r"(all_or_nothing_checks|go_on|stop_after)(?:\s*[:=]\s*(\d{1,6}))?", word or _USUAL_POLICY):
        case re.Match() as match if match[1] == "stop_after" and match[2] and int(match[2]) > 0:
            return Policy(all_or_nothing=False, stop_after=int(match[2]))
        case re.Match() as match if match[1] != "stop_after" and not match[2]:
            return Policy(all_or_nothing=match[1] == _USUAL_POLICY)
    raise Refused("bad_policy", f"{word!r} is no policy", "all_or_nothing_checks, go_on, or stop_after: 3.")


@dataclass(frozen=True, slots=True)
class Known:
    """What there is: the node of each VM, the nodes, and the time. `unread` are VMs of entries that cannot be read."""

    vms: Mapping[str, str]
    nodes: frozenset[str]
    moment: datetime
    unread: frozenset[str] = frozenset()


def check_batch(entries: Sequence[BatchEntry], known: Known) -> list[Problem]:
    """All that is wrong, in the order of the lines; a cycle comes last."""
    first = dict[str, int]()
    problems = list[Problem]()
    for entry in entries:
        # A name that is like another one takes long to find, and nobody reads so many.
        problems += _entry_problems(entry, known, first, search=len(problems) < _MOST_SEARCHES)
        first.setdefault(entry.vm, entry.line)
    for entry in entries:
        problems += _after_problems(entry, {*first, *known.unread})
    return [*problems, *_cycles(entries)]


def _entry_problems(entry: BatchEntry, known: Known, first: Mapping[str, int], *, search: bool) -> Iterator[Problem]:
    def problem(code: str, words: str, hint: str) -> Problem:
        return Problem(code, at_line(entry.line, words), hint)

    if entry.vm in first:
        there = f"stands on line {first[entry.vm]} already" if first[entry.vm] else "is there twice"
        yield problem("vm_twice", f"VM {entry.vm} {there}", "Once is enough.")
    if entry.vm not in known.vms:
        hint = _near(entry.vm, known.vms if search else (), "haulier vm list")
        yield problem("unknown_vm", f"there is no VM called {entry.vm}", hint)
    if entry.target != AUTO and entry.target not in known.nodes:
        hint = _near(entry.target, known.nodes if search else (), "haulier node list")
        yield problem("unknown_node", f"there is no node called {entry.target}", hint)
    elif known.vms.get(entry.vm) == entry.target:
        yield problem("already_there", f"VM {entry.vm} is on {entry.target} already", f"Another node, or {AUTO}.")
    if abs(entry.priority or 0) > MOST_PRIORITY:
        yield problem("bad_priority", f"{entry.priority} is no priority", "100 is an evacuation's, 50 the usual one.")
    try:
        if entry.label is not None:
            label_name(entry.label)
    except Refused as error:
        yield problem(error.code, error.problem.message, error.problem.hint)
    if entry.deadline is not None and entry.deadline <= known.moment:
        yield problem("deadline_over", f"the deadline {entry.deadline.isoformat()} is over", "A moment to come.")


def _after_problems(entry: BatchEntry, there: Collection[str]) -> Iterator[Problem]:
    for name in entry.after:
        if name not in there:
            words = f"after: {name} is not in this batch"
            yield Problem("after_unknown", at_line(entry.line, words), "Only VMs of the same batch are waited for.")


def _cycles(entries: Sequence[BatchEntry]) -> Iterator[Problem]:
    try:
        TopologicalSorter({entry.vm: entry.after for entry in entries}).prepare()
    except CycleError as error:
        # Each stands after the next.
        circle: list[str] = error.args[1]
        line = next((entry.line for entry in entries if entry.vm in circle), 0)
        names = " → ".join(circle if len(circle) <= _MOST_SEARCHES else [*circle[:_MOST_SEARCHES], "…"])
        yield Problem("after_cycle", at_line(line, f"these wait for each other: {names}"), "Cut it.")


def _near(name: str, there: Iterable[str], command: str) -> str:
    return meant(name, there) or f"See `{command}`."
