"""The moves of a migration's state, by compare-and-set, each with its event in the same transaction."""

from __future__ import annotations

from sqlalchemy import update

from haulier.clock import now
from haulier.errors import Problem
from haulier.services.context import Unit
from haulier.services.waiting import go_on_message, make_room
from models import Migration, MigrationState
from models.transitions import AT_WORK, require_legal


def move_migration(unit: Unit, migration: Migration, to: MigrationState, **values: object) -> bool:
    """Move a migration by compare-and-set from the state it was read in. False if somebody else was first."""
    require_legal(migration.state, to)
    moved = unit.session.execute(
        update(Migration)
        .where(Migration.id == migration.id, Migration.state == migration.state)
        .values(state=to, **values)
        .execution_options(synchronize_session="fetch")
    )
    if moved.rowcount != 1:  # type: ignore[attr-defined]  # an UPDATE's result has it
        return False
    unit.note(
        f"{'sync' if migration.replication_id else 'migration'}.{to}",
        vm=migration.vm.name,
        migration=migration.id,
        source=migration.source.name,
        target=migration.target.name,
    )
    unit.ring(f"migration.{migration.id}")
    if to not in AT_WORK:
        # First whoever may send those elsewhere that wait for a target which has failed.
        if to is not MigrationState.QUEUED and migration.batch and migration.batch.evacuation_id:
            unit.send(go_on_message(migration.batch.evacuation_id))
        make_room(unit)
    return True


def end_waiting(unit: Unit, migration: Migration, problems: tuple[Problem, ...] = ()) -> None:
    """End one that waits: it is refused for these reasons, or without any cancelled. What an earlier try came to is not
    the reason.
    """
    state = MigrationState.REFUSED if problems else MigrationState.CANCELLED
    migration.problems = []
    remember(migration, problems)
    move_migration(unit, migration, state, finished_at=now())


def remember(migration: Migration, problems: tuple[Problem, ...]) -> None:
    """Keep all reasons, the most telling first: the side that failed knows more than the one that saw it fail, and what
    fails because the time was over, or because the other side gave up, tells nothing.
    """
    found = [*migration.problems, *(problem.as_dict() for problem in problems if problem.code != "given_up")]
    rank = {"timed_out": 0, "stalled": 0, "target_failed": 1}
    migration.problems = sorted(found, key=lambda problem: rank.get(problem["code"], len(rank)))
