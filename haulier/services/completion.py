"""How nearly every step ends: it is done, nothing is in the way, and what comes after it is made ready.

Below the ORM, by statements that are built once, because each step of each migration comes here. Whatever needs a
second look is left to chain.py: a migration that is being undone or needs an operator, a gate, the last step.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, bindparam, select, update

from haulier.clock import now
from haulier.services.claims import Claim, lock_attempt
from haulier.services.context import Unit
from haulier.services.steps import message_for
from models import Base, Phase, StepState, chain_of, may_begin
from models.transitions import GOING_ON

_ATTEMPT, _MIGRATION, _STEP = (Base.metadata.tables[name] for name in ("attempt", "migration", "step"))
_THIS: BindParameter[int] = bindparam("this")
_STEPS = select(
    *(_STEP.c[name] for name in ("id", "phase", "side", "queue", "state", "fence", "notes", "marks"))
).where(_STEP.c.attempt_id == _THIS)
_TERMS = (
    select(*(_MIGRATION.c[name] for name in ("state", "cancel_asked", "needs_operator", "offline", "replication_id")))
    .join(_ATTEMPT, _ATTEMPT.c.migration_id == _MIGRATION.c.id)
    .where(_ATTEMPT.c.id == _THIS)
)
_DONE = (
    update(_STEP)
    .where(_STEP.c.id == _THIS)
    .values(
        state=StepState.DONE, lease_until=None, **{name: bindparam(name) for name in ("finished_at", "notes", "marks")}
    )
)
_READY = update(_STEP).where(_STEP.c.id == _THIS).values(state=StepState.READY, ready_at=bindparam("ready_at"))


def complete_plainly(unit: Unit, held: Claim, *, notes: dict[str, Any], marks: dict[str, float]) -> bool | None:
    """End a step as nearly all end. False if the claim no longer counts, None if it is not as simple as that: nothing
    was changed then.
    """
    connection, it = unit.session.connection(), {"this": held.attempt_id}
    # Of two steps that end at the same moment, the second must see the first as done.
    lock_attempt(connection, held.attempt_id)
    steps = connection.execute(_STEPS, it).all()
    mine = next(step for step in steps if step.id == held.step_id)
    if mine.fence != held.fence or mine.state is not StepState.RUNNING:
        return False
    terms = connection.execute(_TERMS, it).one()
    if terms.state not in GOING_ON or terms.cancel_asked or terms.needs_operator or held.phase is Phase.HAND_OVER:
        return None
    states = {(step.phase, step.side): step.state for step in steps} | {(held.phase, held.side): StepState.DONE}
    chain = chain_of(offline=terms.offline, sync=terms.replication_id is not None)
    following = {(rule.phase, rule.side): rule for rule in may_begin(chain, states)}
    if not following or any(rule.gate or rule.beside for rule in following.values()):
        return None
    moment = now()
    ended = {"this": mine.id, "finished_at": moment, "notes": {**mine.notes, **notes}, "marks": {**mine.marks, **marks}}
    connection.execute(_DONE, ended)
    for step in steps:
        if (step.phase, step.side) in following:
            connection.execute(_READY, {"this": step.id, "ready_at": moment})
            unit.send(message_for(step))
    unit.ring(f"migration.{held.migration_id}")
    return True
