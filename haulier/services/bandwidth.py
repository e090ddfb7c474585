"""What each step that carries bytes may use of the budgets of nodes and links, divided anew while they work.

A step's worker asks when it begins, and once a second then, and says what its tools have been told. Every act here is a
transaction of its own, which is in nobody's way: who cannot divide at once keeps what it has, and asks again.
"""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from haulier.planner.bandwidth import Flow, next_shares
from haulier.services.claims import Claim
from haulier.services.context import Context, Unit
from haulier.services.room import load_limits, source_node, target_node, usual_limits
from models import Attempt, BandwidthShare, Gate, Migration, QueueLimit, Step, StepState

# Who divides excludes all others that do. One that stands still with it must not hold those who have guests to mind.
_BANDWIDTH, _PATIENCE_S = 2, 0.2
# What a step began may go on as long as it is not undone, and with it whatever limit it was told.
_MAY_CARRY = or_(
    Step.state == StepState.RUNNING,
    and_(
        Step.state.in_((StepState.FAILED, StepState.UNDO_READY, StepState.UNDOING)),
        select(Attempt.id).where(Attempt.id == Step.attempt_id, Attempt.finished_at.is_(None)).exists(),
    ),
)


def take_share(context: Context, held: Claim, *, using: int | None, fixed: bool = False) -> int | None:
    """What a step may use from now on, in bytes per second; None is no limit, 0 is nothing until others have given.

    `using` is what its tools may be using: what it must give is free for others when it has said so. With `fixed` they
    will take no new limit. Raises OperationalError when others take too long to divide.
    """
    with context.database.read() as session:
        if not _has_budgets(context, session):
            return None
        found = session.get(BandwidthShare, held.step_id)
        if found is not None and found.fixed == fixed and found.using_bytes_per_s == _told(found, using):
            return found.share_bytes_per_s
    with context.unit() as unit:
        _exclude_others(unit)
        step = unit.session.get_one(Step, held.step_id)
        if step.fence != held.fence or step.state is not StepState.RUNNING:
            # It is to be given up, as the renewal of its lease says.
            return using
        row = unit.session.get(BandwidthShare, held.step_id)
        if row is None:
            row = BandwidthShare(step_id=held.step_id, share_bytes_per_s=using)
            unit.session.add(row)
        row.using_bytes_per_s, row.fixed = using, fixed
        _divide(unit)
        row.using_bytes_per_s = _told(row, using)
        return row.share_bytes_per_s


def _told(row: BandwidthShare, using: int | None) -> int | None:
    """From the answer on a step may use its share, and has not said yet that it does. A fixed one has said it."""
    return using if row.fixed and using else most(using, row.share_bytes_per_s)


def most(*shares: int | None) -> int | None:
    """The largest of these shares; None is no limit."""
    numbers = [share for share in shares if share is not None]
    return max(numbers) if len(numbers) == len(shares) else None


def give_back(context: Context, held: Claim) -> None:
    """A step carries no more. Safe to call twice; what cannot be divided now is by whoever comes next."""
    with context.database.read() as session:
        if session.get(BandwidthShare, held.step_id) is None:
            return
    _divide_if_nobody_else_does(context, without=held.step_id)


def divide_anew(context: Context) -> None:
    """Divide by the budgets of now, among those that are at work now. Safe to call at any time."""
    with context.database.read() as session:
        if session.scalar(select(BandwidthShare.step_id).limit(1)) is None:
            return
    _divide_if_nobody_else_does(context)


def _divide_if_nobody_else_does(context: Context, *, without: int | None = None) -> None:
    with suppress(OperationalError), context.unit() as unit:
        _exclude_others(unit)
        if without is not None:
            unit.session.execute(delete(BandwidthShare).where(BandwidthShare.step_id == without))
        _divide(unit)


def _exclude_others(unit: Unit) -> None:
    unit.context.database.exclude_others(unit.session, _BANDWIDTH, patience_s=_PATIENCE_S)


def _has_budgets(context: Context, session: Session) -> bool:
    usual = usual_limits(context.settings, Gate.BANDWIDTH)
    if usual.usual_out is not None or usual.usual_in is not None:
        return True
    own = select(QueueLimit.id).where(QueueLimit.gate == Gate.BANDWIDTH).limit(1)
    return session.scalar(own) is not None


def _divide(unit: Unit) -> None:
    session = unit.session
    carrying = select(Step.id).where(Step.id == BandwidthShare.step_id, _MAY_CARRY)
    session.execute(delete(BandwidthShare).where(~carrying.exists()))
    session.flush()
    found = session.execute(
        select(BandwidthShare, Step.state, source_node.name, target_node.name)
        .join(Step, Step.id == BandwidthShare.step_id)
        .join(Attempt, Attempt.id == Step.attempt_id)
        .join(Migration, Migration.id == Attempt.migration_id)
        .join(source_node, Migration.source_id == source_node.id)
        .join(target_node, Migration.target_id == target_node.id)
        .order_by(BandwidthShare.step_id)
    ).all()
    rows = {row.step_id: row for row, *_ in found}
    flows = [
        Flow(
            row.step_id,
            source,
            target,
            share=row.share_bytes_per_s,
            using=row.using_bytes_per_s,
            # Nobody is there who would tell its tools.
            fixed=row.fixed or state is not StepState.RUNNING,
        )
        for row, state, source, target in found
    ]
    for number, share in next_shares(flows, load_limits(unit.context, session, Gate.BANDWIDTH)).items():
        row = rows[number]
        row.share_bytes_per_s = share
        if share is None:
            # Where no budget is left it may know that without asking for its row.
            row.using_bytes_per_s = None
