"""Where VMs could go: placed by the planner, each move asked as a migration is when it is filed. Touches nothing.

All is read first, then places are looked for, which takes seconds: no transaction is open meanwhile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from haulier.clock import steady_s
from haulier.errors import Problem
from haulier.planner.admission import Wish
from haulier.planner.failures import FailureClass, class_of, lasting
from haulier.planner.forecast import Waiting, forecast
from haulier.planner.placing.plan import Blocked, Load, Move, Placing, place
from haulier.planner.refusals import STARTED, refuse_filing
from haulier.services.cluster import Census, Question, load_census
from haulier.services.context import Context
from haulier.services.filing import Terms, Wanted, plan_migrations
from haulier.services.forecast import eta_s, measured_rates
from haulier.services.room import load_room
from models import EvacuationPolicy, Gate, Node, Vm

# Before what users want, and before rebalancing.
EVACUATION_PRIORITY = 100
EVACUATION_TRIES = 3
# What a target refuses is tried on so many others.
_ROUNDS = 8
# These depend on the target, though trying again does not help.
_OF_A_TARGET = ("name_taken", "machine_unknown", "accel_differs", "libtpms_older", "replica_has_other_format")

_NONE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Plan:
    """The moves in their order, with the bytes of each VM, and who cannot go. `eta_s`: when all of them would be done,
    None if something else holds one of them.
    """

    moves: tuple[Move, ...]
    blocked: tuple[Blocked, ...]
    bytes: Mapping[str, int]
    loads: tuple[Load, ...]
    spare: tuple[Problem, ...]
    gap: float | None
    cut_short: bool
    eta_s: float | None


def terms_of_vm(vm: Vm) -> Terms:
    """How a VM is moved out of its node, or back."""
    return Terms(
        offline=vm.state not in STARTED,
        priority=EVACUATION_PRIORITY,
        tries=EVACUATION_TRIES,
        may_pause=vm.evacuation is EvacuationPolicy.LIVE_OR_PAUSE,
    )


def kept_by_policy(vm: Vm) -> Problem | None:
    """Why a VM's own policy keeps it where it is; None if it may go."""
    if vm.evacuation is EvacuationPolicy.STAY:
        hint = f"haulier vm set {vm.name} --evacuation offline_if_stopped"
        return Problem("policy_stay", f"VM {vm.name} stays by its policy", hint)
    return None


def may_be_left(vm: Vm) -> bool:
    """Whether its node counts as empty with it there: it does not run, and only while it runs it is to be moved."""
    return vm.state not in STARTED and vm.evacuation is EvacuationPolicy.LIVE


@dataclass(frozen=True, slots=True)
class ToPlace:
    """VMs that are to have places, the migrations that some of them wait in, the nodes that each cannot go to, and all
    else that is known for it. All is of one moment; the VMs belong to no session any more.
    """

    vms: tuple[Vm, ...]
    waiting: Mapping[str, int]
    avoids: Mapping[str, Mapping[str, Problem]]
    census: Census


def to_place(
    context: Context, session: Session, vms: Sequence[Vm], question: Question, *, waiting: Mapping[str, int] = _NONE
) -> ToPlace:
    """Read what is needed to find places for these VMs where `question` allows. They are in no open migration, but for
    those in `waiting`.
    """
    census = load_census(context, session, dataclasses.replace(question, vms=[vm.id for vm in vms]))
    return ToPlace(tuple(vms), waiting, question.avoids, census)


@dataclass(slots=True)
class _Known:
    """What was found out while asking: where each cannot go, who can go nowhere, and the bytes of each move."""

    avoids: dict[str, dict[str, Problem]]
    stuck: dict[str, Problem]
    bytes: dict[tuple[str, str], int] = field(default_factory=dict)


def plan_moves(context: Context, wanted: ToPlace) -> Plan:
    """Find places for these VMs. While they are looked for no transaction is open; the moves of each round are asked in
    a short one.
    """
    known = _Known(
        {vm.name: dict(wanted.avoids.get(vm.name, {})) for vm in wanted.vms},
        {vm.name: problem for vm in wanted.vms if (problem := kept_by_policy(vm))},
    )
    for _ in range(_ROUNDS):
        cluster = wanted.census.cluster(avoids=known.avoids, stuck=known.stuck)
        placing = place(cluster, clock=steady_s, time_s=context.settings.placement_time_s)
        if not _refused(context, wanted, placing, known):
            break
    moves = tuple(move for move in placing.moves if (move.guest, move.target) in known.bytes)
    return Plan(
        moves,
        tuple(sorted(_blocked(placing, known), key=lambda each: each.guest)),
        {move.guest: known.bytes[move.guest, move.target] for move in moves},
        placing.loads,
        placing.spare,
        placing.gap,
        placing.cut_short,
        _eta_s(context, wanted, moves, known),
    )


def _blocked(placing: Placing, known: _Known) -> Iterator[Blocked]:
    yield from placing.blocked
    yield from (Blocked(name, problem) for name, problem in known.stuck.items())
    for move in placing.moves:
        # Refused in the last round: nobody has looked for another place.
        if problem := known.avoids[move.guest].get(move.target):
            yield Blocked(move.guest, problem)


@dataclass(frozen=True, slots=True)
class _Answer:
    """Why a move would be refused for good, and what would cross."""

    problems: tuple[Problem, ...]
    bytes: int = 0


def _refused(context: Context, wanted: ToPlace, placing: Placing, known: _Known) -> bool:
    """Ask each move that was not asked yet. Says whether one was refused."""
    moves = [move for move in placing.moves if (move.guest, move.target) not in known.bytes]
    refused = False
    for move, answer in zip(moves, _ask(context, wanted, moves), strict=True):
        if not answer.problems:
            known.bytes[move.guest, move.target] = answer.bytes
            continue
        refused, problem = True, answer.problems[0]
        if class_of(problem.code) is FailureClass.TARGET or problem.code in _OF_A_TARGET:
            known.avoids[move.guest][move.target] = problem
        else:
            known.stuck[move.guest] = problem
    return refused


def _ask(context: Context, wanted: ToPlace, moves: Sequence[Move]) -> list[_Answer]:
    """Each move as it would be filed now, by the rows as they are now: a VM may have gone, started or stopped."""
    before, targets = {vm.name: vm for vm in wanted.vms}, {move.target for move in moves}
    with context.database.read() as session:
        ids = [before[move.guest].id for move in moves]
        vms = {vm.name: vm for vm in session.scalars(select(Vm).where(Vm.id.in_(ids)))}
        those = or_(Node.name.in_(targets), Node.id.in_({vm.node_id for vm in vms.values()}))
        nodes = {node.name: node for node in session.scalars(select(Node).where(those))}
        there = {name: vm for name, vm in vms.items() if vm.node_id == before[name].node_id}
        asked = [move for move in moves if move.guest in there]
        wishes = [Wanted(there[move.guest], nodes[move.target], terms_of_vm(there[move.guest])) for move in asked]
        plans = plan_migrations(context, session, wishes, but=list(wanted.waiting.values()))
        found = {
            move.guest: _Answer(lasting(refuse_filing(plan.facts)), plan.bytes)
            for move, plan in zip(asked, plans, strict=True)
        }
    return [found.get(move.guest) or _Answer((_moved(move.guest),)) for move in moves]


def _moved(vm: str) -> Problem:
    return Problem("vm_moved", f"VM {vm} is not where it was any more", "Look again: haulier vm list")


def _eta_s(context: Context, wanted: ToPlace, moves: Sequence[Move], known: _Known) -> float | None:
    """When the last of them would be done if they were filed now, before all that waits."""
    names, sources = wanted.census.nodes, {vm.name: vm.node_id for vm in wanted.vms}
    ids = {name: node_id for node_id, name in names.items()}
    with context.database.read() as session:
        rates, room = measured_rates(context, session), load_room(context, session, Gate.PREPARE)
    waiting = [
        Waiting(
            Wish(number, names[sources[move.guest]], move.target),
            rates.seconds(known.bytes[move.guest, move.target], (sources[move.guest], ids[move.target])),
        )
        for number, move in enumerate(moves)
    ]
    spans = forecast(waiting, (), room)
    return eta_s([spans.get(number) for number in range(len(moves))])
