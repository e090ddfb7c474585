"""Who of those that wait is begun: asked whenever room may have been made, and by beat.

Only rows are looked at, in the transaction that begins somebody: a process that dies here has begun them or not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from enum import Enum, auto
from math import inf
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Row, Select, and_, not_, or_, select, true, tuple_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, aliased

from haulier.clock import Pace, now, steady_s
from haulier.planner.admission import MOST_KEPT, PATIENCE_S, Room, Wish, decide
from haulier.planner.failures import lasting
from haulier.planner.limits import Hold
from haulier.planner.refusals import STARTED, refuse_filing
from haulier.services.chain import release, start_attempt
from haulier.services.context import Context, Unit
from haulier.services.defects import problems_of
from haulier.services.filing import plan_migration, terms_of
from haulier.services.gate import let_through
from haulier.services.moves import end_waiting
from haulier.services.policies import not_to_begin
from haulier.services.room import ADMISSION, load_room, source_node, target_node
from haulier.services.settling import settle, stop_batches
from haulier.services.transfers import file_transfers
from haulier.services.waiting import make_room
from haulier.services.way import ask_to_make_way
from models import WAITS, Attempt, Batch, BatchState, Gate, Migration, MigrationAfter, MigrationState, NodeState, Vm

log = structlog.get_logger()
# A transaction that begins many would keep a guest that is paused waiting for its commit.
_AT_A_TIME = 4
_HELD_AT_A_TIME = 16
_PORTION = 64
# It takes the longer the more wait.
SETTLE_EVERY_S = 1.0
# Who waits for a command's answer begins what there is room for now, and leaves the others to the control worker.
AT_ONCE_S = 1.0


def admit(context: Context, *, settling: Pace | None = None, at_most_s: float = inf) -> None:
    """Begin those that wait, in the queue's order, as far as the limits leave room. Safe to call at any time.

    `settling` says when all that wait are looked through for what has changed about them; who has none begins with it.
    After `at_most_s` the control worker is asked to go on.

    One that can never begin is refused, with all reasons, as it would have been when it was filed. Those that are
    prepared and wait before their guests' RAM is moved are let through first.
    """
    settling = settling or Pace(SETTLE_EVERY_S)
    passed, begun, again, more = set[int](), 0, True, False
    give_up_at = steady_s() + at_most_s
    # Where there is always room for one more to begin, this does not end for long.
    while again and steady_s() < give_up_at:
        if more or settling.is_due():
            if begun:
                context.database.make_way()
                # What held these few may be over, and they are older than whoever is begun now.
                passed, begun = passed if len(passed) > _PORTION else set(), 0
            more = _settle(context)
        _open_gate(context)
        number, again = _admit_some(context, passed)
        begun, again = begun + number, again or more
    if again:
        with context.unit() as unit:
            make_room(unit)


def _settle(context: Context) -> bool:
    with context.unit() as unit:
        context.database.exclude_others(unit.session, ADMISSION)
        return settle(unit)


def _open_gate(context: Context) -> None:
    with context.unit() as unit:
        context.database.exclude_others(unit.session, ADMISSION)
        for wish in let_through(context, unit.session):
            # Whoever holds the row may be waiting for us: a gate that it comes to asks for itself.
            attempt = unit.session.get(Attempt, wish.id, with_for_update={"skip_locked": True})
            if attempt is not None and attempt.moving_at is None and _goes_on(attempt.migration):
                attempt.moving_at = now()
                release(unit, attempt)


def _goes_on(migration: Migration) -> bool:
    stopped = migration.cancel_asked or migration.needs_operator
    return migration.state is MigrationState.RUNNING and not stopped


def _admit_some(context: Context, passed: set[int]) -> tuple[int, bool]:
    """In one transaction. `passed` are those that something about their own VM holds. Says how many were begun, and
    whether to look again.
    """
    with context.unit() as unit:
        context.database.exclude_others(unit.session, ADMISSION)
        stop_batches(unit)
        begun, held = 0, 0
        for wish in _granted(context, unit.session, passed):
            match _begin_or_refuse(context, unit, wish):
                case _Found.ROOM:
                    begun += 1
                case _Found.HELD:
                    passed.add(wish.id)
                    held += 1
                case _Found.CHANGED:
                    # It may have been the failure after which its batch stops.
                    return begun, True
            if begun == _AT_A_TIME or held == _HELD_AT_A_TIME:
                return begun, True
        return begun, held > 0


def _granted(context: Context, session: Session, passed: set[int]) -> Iterator[Wish]:
    """Those that there is room for: the oldest first, then portions without the nodes that are full by then."""
    room = load_room(context, session, Gate.PREPARE)
    if room.is_full:
        return
    # The oldest even if their nodes are full, because room may be kept for them.
    portion = MOST_KEPT
    query = waiting(but=passed).where(*_may_begin(), has_no_label_of(room.labels.full()))
    while rows := _in_order(context, session, query.limit(portion)):
        yield from decide([wish_of(row) for row in rows], room)[0]
        if room.is_full or len(rows) < portion:
            return
        last = (rows[-1].rank, rows[-1].id)
        portion, query = _PORTION, _with_room(room, passed).where(tuple_(Migration.rank, Migration.id) > last)


def _in_order(context: Context, session: Session, query: Select[*tuple[Any, ...]]) -> Sequence[Row[Any]]:
    with context.database.in_order(session):
        return session.execute(query).all()


def _may_begin() -> tuple[ColumnElement[bool], ...]:
    """Its batch, if it has one, is open, all that it comes after is done, and what failed may be tried again."""
    before = aliased(Migration)
    closed = select(Batch.id).where(Batch.id == Migration.batch_id, Batch.state != BatchState.OPEN)
    not_done = (
        select(MigrationAfter.after_id)
        .join(before, before.id == MigrationAfter.after_id)
        .where(MigrationAfter.migration_id == Migration.id, before.state != MigrationState.DONE)
    )
    due = or_(Migration.not_before.is_(None), Migration.not_before <= now())
    return ~closed.exists(), ~not_done.exists(), due


def waiting(*, but: Collection[int] = ()) -> Select[*tuple[Any, ...]]:
    """Those that wait, in the queue's order: id, rank, filed_at, source, target and label."""
    query = (
        select(
            Migration.id,
            Migration.id.label("migration_id"),
            Migration.rank,
            Migration.created_at.label("filed_at"),
            source_node.name.label("source"),
            target_node.name.label("target"),
            Migration.label,
        )
        .join(source_node, Migration.source_id == source_node.id)
        .join(target_node, Migration.target_id == target_node.id)
        .where(WAITS)
        .order_by(Migration.rank, Migration.id)
    )
    return query.where(Migration.id.not_in(but)) if but else query


def has_no_label_of(labels: Collection[str]) -> ColumnElement[bool]:
    """What is true of all that do not have one of these."""
    return or_(Migration.label.is_(None), Migration.label.not_in(labels)) if labels else true()


def wish_of(row: Any, *, blocked: Hold | None = None) -> Wish:  # noqa: ANN401 - a row of `waiting`
    """As the planner sees it."""
    overdue = row.filed_at < now() - timedelta(seconds=PATIENCE_S)
    return Wish(row.id, row.source, row.target, row.label, overdue=overdue, blocked=blocked)


def _with_room(room: Room, passed: set[int]) -> Select[*tuple[Any, ...]]:
    pairs = [and_(source_node.name == pair[0], target_node.name == pair[1]) for pair in room.full_pairs()]
    query = waiting(but=passed).where(
        *_may_begin(),
        source_node.name.not_in(room.full_sources()),
        target_node.name.not_in(room.full_targets()),
        has_no_label_of(room.labels.full()),
    )
    return query.where(not_(or_(*pairs))) if pairs else query


class _Found(Enum):
    """What became of one that there is room for. ROOM: it took some, or needs none any more."""

    ROOM = auto()
    HELD = auto()
    CHANGED = auto()


def _begin_or_refuse(context: Context, unit: Unit, wish: Wish) -> _Found:
    """One that cannot even be planned, by a defect or a row that was spoilt, must not hold all others for ever."""
    sent = len(unit.messages)
    try:
        with unit.session.begin_nested():
            return _begin(context, unit, wish)
    except DBAPIError:
        # The database's own: nothing can be said about this one.
        raise
    except Exception as error:
        log.exception("admission.broken", migration=wish.id)
        del unit.messages[sent:]
        end_waiting(unit, unit.session.get_one(Migration, wish.id), problems_of(error))
        return _Found.CHANGED


def _begin(context: Context, unit: Unit, wish: Wish) -> _Found:
    session = unit.session
    vm_id = session.scalar(select(Migration.vm_id).where(Migration.id == wish.id))
    # In the order of those who file.
    vm = session.get_one(Vm, vm_id, with_for_update=True, populate_existing=True)
    migration = session.get_one(Migration, wish.id, with_for_update=True, populate_existing=True)
    if migration.state is not MigrationState.QUEUED:
        return _Found.CHANGED
    if vm.node_id not in (migration.source_id, migration.target_id):
        # It was recovered there since we looked after that: other limits hold it now.
        migration.source_id = vm.node_id
        return _Found.CHANGED
    if vm.node.state is NodeState.LOST:
        # Whoever looks after those that wait refuses it, and says what to do about the VM.
        return _Found.HELD
    if migration.batch_id is not None:
        # It may have been started or stopped since.
        migration.offline = vm.state not in STARTED
    plan = plan_migration(context, session, vm, migration.target, terms_of(migration), but=migration.id)
    kept = not_to_begin(vm) if _leaves(migration) else None
    problems = (*((kept,) if kept else ()), *refuse_filing(plan.facts))
    if for_good := lasting(problems):
        end_waiting(unit, migration, for_good)
        return _Found.CHANGED
    if problems or ask_to_make_way(unit, vm) is not None:
        return _Found.HELD
    migration.epoch = vm.epoch
    file_transfers(unit, start_attempt(unit, migration), plan.crossings)
    return _Found.ROOM


def _leaves(migration: Migration) -> bool:
    """Whether it is because its node is emptied: what a user has filed goes by no policy."""
    batch = migration.batch
    return batch is not None and batch.evacuation_id is not None and not batch.homeward
