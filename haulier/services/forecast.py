"""When those that wait will begin, and all that were filed together be done, by the rates that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.planner.forecast import MOST, Running, Span, Waiting, forecast
from haulier.planner.limits import Hold
from haulier.services.admission import has_no_label_of, waiting, wish_of
from haulier.services.context import Context
from haulier.services.room import load_room, source_node, target_node
from models import IS_AT_WORK, Gate, Migration, MigrationState

# So many of the newest tell how fast it goes.
_NEWEST = 50
# What a first guess rests on, until there are some: a loopback or 10 Gbit/s link, and what does not depend on size.
GUESS_BYTES_PER_S = 400 << 20
FIXED_S = 2.0


@dataclass(frozen=True, slots=True)
class Rates:
    """How many bytes a second a migration has brought over, all in all, between two nodes; `usual` where none has."""

    usual: float
    pairs: Mapping[tuple[int, int], float]

    def seconds(self, planned_bytes: int, pair: tuple[int, int]) -> float:
        """How long a migration of so much will take."""
        return FIXED_S + planned_bytes / self.pairs.get(pair, self.usual)


def measured_rates(context: Context, session: Session) -> Rates:
    """The rates of the newest migrations that are done; without any, a guess that keeps to the limit of bandwidth."""
    rows = session.execute(
        select(
            Migration.source_id,
            Migration.target_id,
            Migration.planned_bytes,
            Migration.started_at,
            Migration.finished_at,
        )
        .where(Migration.state == MigrationState.DONE, Migration.planned_bytes > 0, Migration.replication_id.is_(None))
        .order_by(Migration.id.desc())
        .limit(_NEWEST)
    )
    done = [((row[0], row[1]), row[2], max(_length_s(row[3], row[4]) - FIXED_S, 0.1)) for row in rows]
    pairs = {pair: _rate([(size, took) for each, size, took in done if each == pair]) for pair, _, _ in done}
    guess = min(GUESS_BYTES_PER_S, context.settings.max_bandwidth_bytes_per_s or GUESS_BYTES_PER_S)
    usual = _rate([(size, took) for _, size, took in done]) if done else float(guess)
    return Rates(usual, pairs)


def _rate(done: Sequence[tuple[int, float]]) -> float:
    return sum(size for size, _ in done) / sum(took for _, took in done)


def _length_s(begin: datetime | None, end: datetime | None) -> float:
    return (end - begin).total_seconds() if begin and end else 0.0


def spans(context: Context, session: Session, *, blocked: Mapping[int, Hold]) -> dict[int, Span]:
    """When each migration that is at work will end, and each that waits begin and end, by their numbers."""
    rates, moment = measured_rates(context, session), now()
    at_work = (
        select(Migration, source_node.name, target_node.name)
        .join(source_node, Migration.source_id == source_node.id)
        .join(target_node, Migration.target_id == target_node.id)
        .where(IS_AT_WORK, Migration.replication_id.is_(None))
    )
    running = [
        Running(migration.id, source, target, _left_s(rates, migration, moment))
        for migration, source, target in session.execute(at_work)
    ]
    room = load_room(context, session, Gate.PREPARE)
    sizes = waiting().add_columns(Migration.planned_bytes, Migration.source_id, Migration.target_id)
    queued = [
        Waiting(
            wish_of(row, blocked=blocked.get(row.id)),
            rates.seconds(row.planned_bytes, (row.source_id, row.target_id)),
        )
        for row in session.execute(sizes.where(has_no_label_of(room.labels.paused())).limit(MOST))
    ]
    return forecast(queued, running, room)


def eta_s(ends: Sequence[Span | None]) -> float | None:
    """When the last one will be done, in seconds; None where nobody can say, because something holds one of them."""
    known = [span.end_s for span in ends if span is not None]
    return round(max(known, default=0.0), 1) if len(known) == len(ends) else None


def end_s(span: Span | None) -> float | None:
    """When one will be done, in seconds; None where nobody can say."""
    return None if span is None else round(span.end_s, 1)


def _left_s(rates: Rates, migration: Migration, moment: datetime) -> float:
    """One that takes longer than it should is about to end, as far as anybody knows."""
    whole_s = rates.seconds(migration.planned_bytes, (migration.source_id, migration.target_id))
    return max(1.0, whole_s - _length_s(migration.started_at, moment))
