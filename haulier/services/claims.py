"""A worker takes a step: by compare-and-set under a growing fencing number, and with a lease.

Below the ORM, by statements that are built once, because every message comes here, also one that finds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import BindParameter, Connection, bindparam, select, update

from haulier.clock import now
from haulier.services.context import Context
from haulier.services.sightings import Sightings
from models import Base, MigrationState, Phase, Side, StepState
from models.transitions import GOING_ON

_ATTEMPT, _MIGRATION, _STEP = (Base.metadata.tables[name] for name in ("attempt", "migration", "step"))
_THIS: BindParameter[int] = bindparam("this")
_OF_STEP = select(_STEP.c.attempt_id).where(_STEP.c.id == _THIS)
_LOCK = select(_ATTEMPT.c.id).where(_ATTEMPT.c.id == _THIS).with_for_update()
_LOCK_OF_STEP = select(_ATTEMPT.c.id).where(_ATTEMPT.c.id == _OF_STEP.scalar_subquery()).with_for_update()
_READY = (
    select(
        *(_STEP.c[name] for name in ("attempt_id", "phase", "side", "state", "fence", "started_at")),
        _ATTEMPT.c.migration_id,
        _MIGRATION.c.state.label("migration_state"),
        _MIGRATION.c.needs_operator,
    )
    .join(_ATTEMPT, _ATTEMPT.c.id == _STEP.c.attempt_id)
    .join(_MIGRATION, _MIGRATION.c.id == _ATTEMPT.c.migration_id)
    .where(_STEP.c.id == _THIS, _STEP.c.state.in_((StepState.READY, StepState.UNDO_READY)))
)
_TAKE = (
    update(_STEP)
    .where(_STEP.c.id == _THIS, _STEP.c.state == bindparam("found"), _STEP.c.fence == bindparam("before"))
    .values({name: bindparam(name) for name in ("state", "fence", "worker", "lease_s", "lease_until", "started_at")})
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A step that a worker holds.

    `undo` says which of its two works is to be done; results count only under `fence`. `partners` is what its worker
    has seen of those who work beside it.
    """

    step_id: int
    attempt_id: int
    migration_id: int
    phase: Phase
    side: Side
    fence: int
    undo: bool
    partners: Sightings = field(default_factory=Sightings, compare=False, repr=False)


def lock_attempt(connection: Connection, attempt_id: int) -> None:
    """Whoever decides about an attempt locks its row first, in a statement of its own: what is read in one statement
    with the lock is what was there before it was waited for.
    """
    connection.execute(_LOCK, {"this": attempt_id})


def lock_attempt_of(connection: Connection, step_id: int) -> None:
    """The same, by one of its steps."""
    connection.execute(_LOCK_OF_STEP, {"this": step_id})


def attempt_of(context: Context, step_id: int) -> int:
    """The attempt that a step belongs to; it never belongs to another one. Raises NoResultFound when there is none."""
    with context.database.read() as session:
        found: int = session.connection().execute(_OF_STEP, {"this": step_id}).scalar_one()
        return found


def claim(context: Context, step_id: int, *, worker: str, lease_s: float) -> Claim | None:
    """Take a step that is ready to be run or undone; None if there is nothing to take (a doubled message)."""
    with context.unit() as unit:
        connection, it, moment = unit.session.connection(), {"this": step_id}, now()
        lock_attempt_of(connection, step_id)
        step = connection.execute(_READY, it).one_or_none()
        if step is None or step.needs_operator:
            return None
        undo = step.state is StepState.UNDO_READY
        if step.migration_state not in ((MigrationState.ROLLING_BACK,) if undo else GOING_ON):
            return None
        taken = connection.execute(
            _TAKE,
            {
                **it,
                "found": step.state,
                "before": step.fence,
                "state": StepState.UNDOING if undo else StepState.RUNNING,
                "fence": step.fence + 1,
                "worker": worker,
                "lease_s": lease_s,
                "lease_until": moment + timedelta(seconds=lease_s),
                "started_at": step.started_at if undo else moment,
            },
        )
        if taken.rowcount != 1:
            return None
        unit.ring(f"migration.{step.migration_id}")
        return Claim(step_id, step.attempt_id, step.migration_id, step.phase, step.side, step.fence + 1, undo)
