"""Where VMs could go: placed by the planner, each move asked as a migration is when it is filed. Touches nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.clock import steady_s
from haulier.errors import Problem
from haulier.planner.admission import Wish
from haulier.planner.failures import FailureClass, class_of, lasting
from haulier.planner.forecast import Waiting, forecast
from haulier.planner.placing.plan import Blocked, Load, Move, Placing, place
from haulier.planner.refusals import STARTED, refuse_filing
from haulier.services.cluster import Question, load_cluster
from haulier.services.context import Context
from haulier.services.filing import Terms, plan_migration
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


@dataclass(slots=True)
class _Known:
    """The VMs, the migrations that some of them wait in, and what was found out while asking: where each cannot go, who
    can go nowhere, and the bytes of each move.
    """

    vms: Mapping[str, Vm]
    moving: Mapping[str, int]
    avoids: dict[str, dict[str, Problem]]
    stuck: dict[str, Problem] = field(default_factory=dict)
    bytes: dict[tuple[str, str], int] = field(default_factory=dict)


def plan_moves(
    context: Context, session: Session, vms: Sequence[Vm], question: Question, *, moving: Mapping[str, int] = _NONE
) -> Plan:
    """Find places for these VMs where `question` allows. They are in no open migration, but for those in `moving`."""
    known = _Known({vm.name: vm for vm in vms}, moving, {vm.name: dict(question.avoids.get(vm.name, {})) for vm in vms})
    known.stuck = {vm.name: problem for vm in vms if (problem := kept_by_policy(vm))}
    for _ in range(_ROUNDS):
        placing = _place(context, session, question, known)
        if not _refused(context, session, placing, known):
            break
    moves = tuple(move for move in placing.moves if (move.guest, move.target) in known.bytes)
    unasked = [move for move in placing.moves if move not in moves]
    blocked = (
        *placing.blocked,
        *(Blocked(move.guest, known.avoids[move.guest][move.target]) for move in unasked),
        *(Blocked(name, problem) for name, problem in known.stuck.items()),
    )
    return Plan(
        moves,
        tuple(sorted(blocked, key=lambda each: each.guest)),
        {move.guest: known.bytes[move.guest, move.target] for move in moves},
        placing.loads,
        placing.spare,
        placing.gap,
        placing.cut_short,
        _eta_s(context, session, moves, known),
    )


def _place(context: Context, session: Session, question: Question, known: _Known) -> Placing:
    free = [vm.id for name, vm in known.vms.items() if name not in known.stuck]
    cluster = load_cluster(context, session, dataclasses.replace(question, vms=free, avoids=known.avoids))
    return place(cluster, clock=steady_s, time_s=context.settings.placement_time_s)


def _refused(context: Context, session: Session, placing: Placing, known: _Known) -> bool:
    """Ask each move that was not asked yet. Says whether one was refused."""
    nodes = {node.name: node for node in session.scalars(select(Node))}
    refused = False
    for move in placing.moves:
        if (move.guest, move.target) in known.bytes:
            continue
        vm = known.vms[move.guest]
        terms, own = terms_of_vm(vm), known.moving.get(move.guest)
        plan = plan_migration(context, session, vm, nodes[move.target], terms, but=own)
        problems = lasting(refuse_filing(plan.facts))
        if not problems:
            known.bytes[move.guest, move.target] = plan.bytes
        elif class_of(problems[0].code) is FailureClass.TARGET or problems[0].code in _OF_A_TARGET:
            known.avoids[move.guest][move.target] = problems[0]
            refused = True
        else:
            known.stuck[move.guest] = problems[0]
            refused = True
    return refused


def _eta_s(context: Context, session: Session, moves: Sequence[Move], known: _Known) -> float | None:
    """When the last of them would be done if they were filed now, before all that waits."""
    rates, ids = measured_rates(context, session), {node.name: node.id for node in session.scalars(select(Node))}
    waiting = [
        Waiting(
            Wish(number, known.vms[move.guest].node.name, move.target),
            rates.seconds(known.bytes[move.guest, move.target], (known.vms[move.guest].node_id, ids[move.target])),
        )
        for number, move in enumerate(moves)
    ]
    spans = forecast(waiting, (), load_room(context, session, Gate.PREPARE))
    return eta_s([spans.get(number) for number in range(len(moves))])
