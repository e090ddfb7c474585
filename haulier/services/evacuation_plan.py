"""Where the VMs of an evacuation could go, and why some cannot. Touches nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from sqlalchemy.orm import Session

from haulier.clock import steady_s
from haulier.errors import Problem
from haulier.planner.placing.loads import Load
from haulier.planner.placing.plan import Blocked, Move, Placing, place
from haulier.planner.refusals import STARTED
from haulier.services.cluster import Question, load_census
from haulier.services.context import Context
from haulier.services.filing import Terms
from haulier.services.forecast import end_s, eta_s
from haulier.services.placed_moves import Known, ToPlace, find_places, moves_spans
from haulier.services.policies import kept_by_policy
from models import EvacuationPolicy, Vm

# Before what users want, and before rebalancing.
EVACUATION_PRIORITY = 100
EVACUATION_TRIES = 3

_NONE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Plan:
    """The moves in their order, with the bytes of each VM and when it would be done (`ends`, seconds; None where nobody
    can say), and who cannot go. `eta_s`: when all of them would be done,
    None if something else holds one of them.
    """

    moves: tuple[Move, ...]
    blocked: tuple[Blocked, ...]
    bytes: Mapping[str, int]
    loads: tuple[Load, ...]
    spare: tuple[Problem, ...]
    gap: float | None
    cut_short: bool
    ends: Mapping[str, float | None]
    eta_s: float | None


def terms_of_vm(vm: Vm, *, to_be_stopped: bool = False) -> Terms:
    """How a VM is moved out of its node, or back."""
    return Terms(
        offline=to_be_stopped or vm.state not in STARTED,
        priority=EVACUATION_PRIORITY,
        tries=EVACUATION_TRIES,
        may_pause=vm.evacuation is EvacuationPolicy.LIVE_OR_PAUSE,
    )


def to_place(
    context: Context,
    session: Session,
    vms: Sequence[Vm],
    question: Question,
    *,
    waiting: Mapping[str, int] = _NONE,
    to_be_stopped: bool = False,
) -> ToPlace:
    """Read what is needed to find places for these VMs where `question` allows. They are in no open migration, but for
    those in `waiting`.
    """
    census = load_census(context, session, dataclasses.replace(question, vms=[vm.id for vm in vms]))
    kept = {vm.name: problem for vm in vms if (problem := kept_by_policy(vm))}
    terms = partial(terms_of_vm, to_be_stopped=to_be_stopped)
    return ToPlace(census, terms, question.avoids, kept, waiting, as_if_stopped=to_be_stopped)


def plan_moves(context: Context, wanted: ToPlace, *, time_s: float | None = None) -> Plan:
    """Find places for these VMs, in so many seconds a round, or in those of the settings. No transaction is open
    meanwhile but short ones.
    """
    searching_s = context.settings.placement_time_s if time_s is None else time_s
    placing, known = find_places(context, wanted, lambda cluster: place(cluster, clock=steady_s, time_s=searching_s))
    moves = known.agreed(placing.moves)
    spans = moves_spans(context, wanted, moves, known)
    return Plan(
        moves,
        tuple(sorted(_blocked(placing, known), key=lambda each: each.guest)),
        {move.guest: known.bytes[move.guest, move.target] for move in moves},
        placing.loads,
        placing.spare,
        placing.gap,
        placing.cut_short,
        {move.guest: end_s(span) for move, span in zip(moves, spans, strict=True)},
        eta_s(spans),
    )


def _blocked(placing: Placing, known: Known) -> Iterator[Blocked]:
    yield from placing.blocked
    yield from (Blocked(name, problem) for name, problem in known.stuck.items())
    for move in placing.moves:
        # Refused in the last round: nobody has looked for another place.
        if problem := known.avoids.get(move.guest, {}).get(move.target):
            yield Blocked(move.guest, problem)
