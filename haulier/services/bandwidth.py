"""What each step that carries bytes may use of the budgets of nodes and links, divided anew while they work.

A step's worker asks when it begins and with each renewal of its lease, and says then what its tools have been told.
Every act here is a transaction of its own, which holds nothing else: what a worker that died leaves goes with the next.
"""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from haulier.planner.bandwidth import Flow, next_shares
from haulier.services.chain import Claim
from haulier.services.context import Context, Unit
from haulier.services.room import load_limits, source_node, target_node, usual_limits
from models import Attempt, BandwidthShare, Gate, Migration, QueueLimit, Step, StepState

# Who divides excludes all others that do; nothing else is waited for meanwhile.
_BANDWIDTH = 2


def take_share(context: Context, held: Claim, *, using: int | None) -> int | None:
    """What a step may use from now on, in bytes per second; None is no limit, 0 is nothing until others have given.

    `using` is what its tools have been told last: what it must give is free for others when it has said so.
    """
    with context.database.read() as session:
        if not _has_budgets(context, session):
            return None
        found = session.get(BandwidthShare, held.step_id)
        if found is not None and found.using_bytes_per_s == _most(using, found.share_bytes_per_s):
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
        row.using_bytes_per_s = using
        _divide(unit)
        # From this answer on it may use that, and has not said yet that it does.
        row.using_bytes_per_s = _most(using, row.share_bytes_per_s)
        return row.share_bytes_per_s


def give_back(context: Context, held: Claim) -> None:
    """A step carries no more. Safe to call twice."""
    with context.unit() as unit:
        _exclude_others(unit)
        row = unit.session.get(BandwidthShare, held.step_id)
        if row is not None:
            unit.session.delete(row)
            _divide(unit)


def divide_anew(context: Context) -> None:
    """Give to others what steps had that nobody works at any more. Safe to call at any time."""
    with context.database.read() as session:
        if session.scalar(select(BandwidthShare.step_id).limit(1)) is None:
            return
    with context.unit() as unit:
        divide(unit)


def divide(unit: Unit) -> None:
    """Give each step that carries its share of the budgets as they are now. Others that divide wait until the end of
    this transaction.
    """
    _exclude_others(unit)
    _divide(unit)


def _exclude_others(unit: Unit) -> None:
    unit.context.database.exclude_others(unit.session, _BANDWIDTH)


def _has_budgets(context: Context, session: Session) -> bool:
    usual = usual_limits(context.settings, Gate.BANDWIDTH)
    if usual.usual_out is not None or usual.usual_in is not None:
        return True
    own = select(QueueLimit.id).where(QueueLimit.gate == Gate.BANDWIDTH).limit(1)
    return session.scalar(own) is not None


def _most(*shares: int | None) -> int | None:
    numbers = [share for share in shares if share is not None]
    return max(numbers) if len(numbers) == len(shares) else None


def _divide(unit: Unit) -> None:
    session = unit.session
    at_work = select(Step.id).where(Step.state == StepState.RUNNING, Step.id == BandwidthShare.step_id)
    session.execute(delete(BandwidthShare).where(~at_work.exists()))
    session.flush()
    found = session.execute(
        select(BandwidthShare, source_node.name, target_node.name)
        .join(Step, Step.id == BandwidthShare.step_id)
        .join(Attempt, Attempt.id == Step.attempt_id)
        .join(Migration, Migration.id == Attempt.migration_id)
        .join(source_node, Migration.source_id == source_node.id)
        .join(target_node, Migration.target_id == target_node.id)
        .order_by(BandwidthShare.step_id)
    ).all()
    rows = {row.step_id: row for row, _, _ in found}
    flows = [
        Flow(row.step_id, source, target, share=row.share_bytes_per_s, using=row.using_bytes_per_s)
        for row, source, target in found
    ]
    for number, share in next_shares(flows, load_limits(unit.context, session, Gate.BANDWIDTH)).items():
        rows[number].share_bytes_per_s = share
