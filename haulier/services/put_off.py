"""What was put off by a clock that has been put back since: it would wait until the old time comes again."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select, update

from haulier.clock import now
from haulier.planner.failures import longest_delay_s
from haulier.services.context import Context
from haulier.services.way import TRUCE
from models import Migration, MigrationState, Replication


def mend_put_off(context: Context) -> None:
    """Make due what is put off for longer than anything ever is. Safe to call at any time."""
    moment = now()
    latest = moment + timedelta(seconds=longest_delay_s(context.settings.retry_at_most_s))
    late = (Migration.state == MigrationState.QUEUED, Migration.not_before > latest)
    with context.database.read() as session:
        retries = session.scalars(select(Migration.id).where(*late)).all()
        wanted = (Replication.every_s.is_not(None), Replication.due_at > moment)
        columns = select(Replication.id, Replication.due_at, Replication.every_s)
        rows = session.execute(columns.where(*wanted).order_by(Replication.id))
        syncs = [
            (number, due_at)
            for number, due_at, every_s in rows
            if due_at and due_at > moment + max(TRUCE, timedelta(seconds=longest_delay_s(every_s or 0)))
        ]
    if not retries and not syncs:
        return
    with context.database.write() as session:
        session.execute(update(Migration).where(*late, Migration.id.in_(retries)).values(not_before=None))
        for number, due_at in syncs:
            # Unless somebody has put it off for a reason of their own since.
            same = (Replication.id == number, Replication.due_at == due_at)
            session.execute(update(Replication).where(*same).values(due_at=moment))
