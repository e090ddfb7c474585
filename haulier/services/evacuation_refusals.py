"""What an evacuation would do if it were begun now, and why it is not. Touches nothing."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Problem, Refused
from haulier.planner.placing.cluster import PARTNER_LEAVING
from haulier.planner.placing.plan import Blocked
from haulier.services.cluster import Question
from haulier.services.context import Context
from haulier.services.evacuation_plan import Plan, plan_moves, to_place
from haulier.services.placed_moves import ToPlace
from haulier.services.policies import may_be_left
from haulier.settings import LONGEST_S
from models import Batch, Migration, MigrationState, Node, Vm
from models.transitions import OPEN_MIGRATION

# So many VMs are named with a reason that they share.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Asked:
    """A plan for what is to leave a node, and for what other evacuations were to send there: `guests` of it."""

    plan: Plan
    guests: Mapping[str, str]


def leaving(context: Context, session: Session, node: Node) -> ToPlace:
    """All that would leave the node now, and what other evacuations were to send there."""
    open_ = select(Migration.vm_id).where(Migration.state.in_(OPEN_MIGRATION), Migration.replication_id.is_(None))
    query = select(Vm).where(Vm.node_id == node.id, Vm.id.not_in(open_)).order_by(Vm.name)
    own = [vm for vm in session.scalars(query) if not may_be_left(vm)]
    coming = _coming(session, node)
    waiting = {vm.name: migration.id for migration, vm in coming}
    closed = {node.name: Problem("node_draining", f"{node.name} is to be emptied", "")}
    return to_place(context, session, [*own, *(vm for _, vm in coming)], Question((), closed), waiting=waiting)


def ask(context: Context, wanted: ToPlace) -> Asked:
    """Find places for these. Takes seconds, and no transaction is open meanwhile."""
    census = wanted.census
    guests = {name: census.nodes[census.vms[name].node_id] for name in wanted.waiting}
    return Asked(plan_moves(context, wanted), guests)


def _coming(session: Session, node: Node) -> list[tuple[Migration, Vm]]:
    """What other evacuations are to send to a node, and has not begun."""
    query = (
        select(Migration, Vm)
        .join(Vm, Vm.id == Migration.vm_id)
        .join(Batch, Batch.id == Migration.batch_id)
        .where(Migration.target_id == node.id, Migration.state == MigrationState.QUEUED)
        .where(Batch.evacuation_id.is_not(None), Batch.homeward.is_(False))
        .order_by(Vm.name)
    )
    return [(row[0], row[1]) for row in session.execute(query)]


def refusals(asked: Asked, *, spare: bool, deadline: datetime | None) -> tuple[Problem, ...]:
    """Why it is not begun: nothing can leave, now or when others have, others lose their only place, there would be no
    spare, or it takes too long.
    """
    found, plan = list[Problem](), asked.plan
    own = [each for each in plan.blocked if each.guest not in asked.guests]
    waits = any(each.problem.code == PARTNER_LEAVING for each in own)
    if own and not waits and all(move.guest in asked.guests for move in plan.moves):
        found += _each_once(own)
    for each in plan.blocked:
        if each.guest in asked.guests:
            words = f"VM {each.guest}, which is to leave {asked.guests[each.guest]}, has no other place"
            found.append(Problem("evacuations_meet", f"{words}: {each.problem.message}", "One after the other."))
    if spare:
        found += plan.spare
    if deadline is not None:
        found += _too_late(plan, deadline)
    return tuple(found)


def _each_once(blocked: Sequence[Blocked]) -> Iterator[Problem]:
    """Each reason once, with the VMs that cannot leave for it."""
    names = defaultdict[Problem, list[str]](list)
    for each in blocked:
        names[each.problem].append(each.guest)
    for problem, guests in names.items():
        more = f" and {len(guests) - _NAMED} more" if len(guests) > _NAMED else ""
        words = f"{', '.join(guests[:_NAMED])}{more} cannot leave: {problem.message}"
        yield dataclasses.replace(problem, message=words)


def _too_late(plan: Plan, deadline: datetime) -> tuple[Problem, ...]:
    left_s = (deadline - now()).total_seconds()
    if left_s <= 0:
        return (deadline_over(deadline),)
    if plan.eta_s is not None and plan.eta_s > left_s:
        words = f"it would take {plan.eta_s:.0f} s, and there are {left_s:.0f} s until the deadline"
        return (Problem("deadline_too_near", words, "A later one, or higher limits: haulier queue limits."),)
    return ()


def deadline_over(deadline: datetime) -> Problem:
    """Nothing is begun any more."""
    return Problem("deadline_over", f"the deadline {deadline.isoformat()} is over", "Give one that is to come.")


def before_hold(deadline: datetime | None, hold_s: float | None) -> datetime | None:
    """By when a node must be empty that is to stay so for `hold_s` before the deadline."""
    return deadline and deadline - timedelta(seconds=hold_s or 0)


def require_hold(hold_s: float | None) -> None:
    """Raises Refused `bad_hold` for what is no time that a node could stay empty."""
    if hold_s is not None and not 0 <= hold_s <= LONGEST_S:
        raise Refused("bad_hold", f"a node cannot stay empty for {hold_s:g} s", "--hold 30m, a year at most.")
