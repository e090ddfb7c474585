"""Moves that the planner finds: all is read first, then places are looked for, and each move is asked and written as a
migration that a user files.

To look for places takes seconds: no transaction is open meanwhile. Two that place VMs at one moment would give away the
same room twice. So whoever writes excludes the others (`PLACING`), and looks whether a promise was made since he read
(`newest_promise`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol, TypeVar

from sqlalchemy import func, insert, or_, select
from sqlalchemy.orm import Session

from haulier.errors import Problem
from haulier.planner.admission import Wish
from haulier.planner.failures import FailureClass, class_of, lasting
from haulier.planner.forecast import Span, Waiting, forecast
from haulier.planner.placing.cluster import Cluster
from haulier.planner.placing.plan import Move
from haulier.planner.refusals import FilingFacts, refuse_filing
from haulier.services.cluster import Census
from haulier.services.context import Context, Unit
from haulier.services.filing import Terms, Wanted, plan_migrations, values_of
from haulier.services.forecast import measured_rates
from haulier.services.room import load_room
from models import Batch, Evacuation, Gate, Migration, Node, Vm, VmState

PLACING = 3
# So often a plan is made anew because somebody filed a migration meanwhile.
PLACED_AGAIN = 3
# What a target refuses is tried on so many others.
_ROUNDS = 8
# These depend on the target, though trying again does not help.
_OF_A_TARGET = ("name_taken", "machine_unknown", "accel_differs", "libtpms_older", "replica_has_other_format")


@dataclass(frozen=True, slots=True)
class ToPlace:
    """VMs that are to have places: all that is known of them, and for it, at one moment. Then how each is to be moved,
    which nodes each cannot go to, who can go nowhere, and the migrations that some of them wait in. With
    `as_if_stopped` they are asked about as if they were stopped for their moves, and started again there.
    """

    census: Census
    terms: Callable[[Vm], Terms]
    avoids: Mapping[str, Mapping[str, Problem]] = field(default_factory=dict)
    stuck: Mapping[str, Problem] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)
    as_if_stopped: bool = False


class Found(Protocol):
    """What a planner says, with its moves."""

    @property
    def moves(self) -> Sequence[Move]: ...


AnyMove = TypeVar("AnyMove", bound=Move)
AnyFound = TypeVar("AnyFound", bound=Found)


@dataclass(slots=True)
class Known:
    """The same of `avoids` and `stuck`, with what was found out while asking, and the bytes of each move that nobody
    refuses.
    """

    avoids: dict[str, dict[str, Problem]]
    stuck: dict[str, Problem]
    bytes: dict[tuple[str, str], int] = field(default_factory=dict)

    def agreed(self, moves: Sequence[AnyMove]) -> tuple[AnyMove, ...]:
        """Those of the moves that nobody refuses."""
        return tuple(move for move in moves if (move.guest, move.target) in self.bytes)


def find_places(context: Context, wanted: ToPlace, find: Callable[[Cluster], AnyFound]) -> tuple[AnyFound, Known]:
    """Have places found until nobody refuses one, or as often as that helps: then some of the last moves are refused.
    While they are looked for no transaction is open; the moves of each round are asked in a short one.
    """
    known = Known({name: dict(nodes) for name, nodes in wanted.avoids.items()}, dict(wanted.stuck))
    for _ in range(_ROUNDS):
        found = find(wanted.census.cluster(avoids=known.avoids, stuck=known.stuck))
        if not _refused(context, wanted, found.moves, known):
            break
    return found, known


@dataclass(frozen=True, slots=True)
class _Answer:
    """Why a move would be refused for good, and what would cross."""

    problems: tuple[Problem, ...]
    bytes: int = 0


def _refused(context: Context, wanted: ToPlace, moves: Sequence[Move], known: Known) -> bool:
    """Ask each move that was not asked yet. Says whether one was refused."""
    new = [move for move in moves if (move.guest, move.target) not in known.bytes]
    refused = False
    for move, answer in zip(new, _ask(context, wanted, new), strict=True):
        if not answer.problems:
            known.bytes[move.guest, move.target] = answer.bytes
            continue
        refused, problem = True, answer.problems[0]
        if class_of(problem.code) is FailureClass.TARGET or problem.code in _OF_A_TARGET:
            known.avoids.setdefault(move.guest, {})[move.target] = problem
        else:
            known.stuck[move.guest] = problem
    return refused


def _ask(context: Context, wanted: ToPlace, moves: Sequence[Move]) -> list[_Answer]:
    """Each move as it would be filed now, by the rows as they are now: a VM may have gone, started or stopped."""
    before, targets = [wanted.census.vms[move.guest] for move in moves], {move.target for move in moves}
    with context.database.read() as session:
        there = still_there(session, {vm.id: vm.node_id for vm in before})
        those = or_(Node.name.in_(targets), Node.id.in_({vm.node_id for vm in there.values()}))
        nodes = {node.name: node for node in session.scalars(select(Node).where(those))}
        asked = [move for move in moves if move.guest in there]
        wishes = [Wanted(there[move.guest], nodes[move.target], wanted.terms(there[move.guest])) for move in asked]
        plans = plan_migrations(context, session, wishes, but=list(wanted.waiting.values()))
        found = {
            move.guest: _Answer(lasting(refuse_filing(_facts(wanted, plan.facts))), plan.bytes)
            for move, plan in zip(asked, plans, strict=True)
        }
    return [found.get(move.guest) or _Answer((_moved(move.guest),)) for move in moves]


def _facts(wanted: ToPlace, facts: FilingFacts) -> FilingFacts:
    return replace(facts, vm_state=VmState.STOPPED) if wanted.as_if_stopped else facts


def _moved(vm: str) -> Problem:
    return Problem("vm_moved", f"VM {vm} is not where it was any more", "Look again: haulier vm list")


def still_there(session: Session, nodes: Mapping[int, int]) -> dict[str, Vm]:
    """Those of these VMs, as they are now, that are on the same nodes, all by their ids: while places were looked for,
    one may have gone, or moved.
    """
    found = session.scalars(select(Vm).where(Vm.id.in_(nodes)).order_by(Vm.name))
    return {vm.name: vm for vm in found if vm.node_id == nodes[vm.id]}


def moves_spans(context: Context, wanted: ToPlace, moves: Sequence[Move], known: Known) -> list[Span | None]:
    """When each of them would begin and be done if they were filed now, in this order and before all that waits; None
    for one that something else holds.
    """
    names, sources = wanted.census.nodes, {name: vm.node_id for name, vm in wanted.census.vms.items()}
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
    return [spans.get(number) for number in range(len(moves))]


def newest_promise(session: Session) -> tuple[int, int]:
    """Whoever placed VMs before another one was filed, or sent elsewhere, has counted its room as free."""
    plans = session.scalar(select(func.sum(Evacuation.plans))) or 0
    return session.scalar(select(func.max(Migration.id))) or 0, int(plans)


def write_moves(unit: Unit, batch: Batch, wishes: Sequence[Wanted], *, at: datetime) -> list[int]:
    """File a migration for each in a batch, and return their numbers. Raises IntegrityError (`meets_another`) if
    somebody has filed one of the same VM by now.
    """
    if not wishes:
        return []
    settings = unit.context.settings
    rows = [
        {**values_of(settings, wish, at=at, place=place), "batch_id": batch.id} for place, wish in enumerate(wishes)
    ]
    query = insert(Migration).returning(Migration.id, sort_by_parameter_order=True)
    return list(unit.session.scalars(query, rows))
