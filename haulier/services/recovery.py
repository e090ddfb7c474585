"""What was left waiting or abandoned is found again, and decided by the tables of haulier/planner/recovery.py.

A sweep looks at rows only: a step whose message was lost, one whose worker died, a node that is silent. It runs by beat
and at each worker's start, which finds lost messages and nobody dead yet. Two that work side by side look after each
other with every renewal of their leases.

That somebody died is known by what was seen of them and not by the time of day (sightings.py). A message may be sent
once too often, so that the time of day is good enough for that one, also when it has been put back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf

from sqlalchemy import ColumnElement, select

from haulier.clock import now
from haulier.errors import Problem
from haulier.planner.recovery import StepAct, StepFinding, decide_step
from haulier.planner.refusals import silent_node
from haulier.services.context import Context, Unit
from haulier.services.endings import end_failed
from haulier.services.gate import is_at_gate
from haulier.services.liveness import beat_seen
from haulier.services.moves import remember
from haulier.services.sightings import Seen, Sightings
from haulier.services.steps import LOST, advance_undo, finish_if_done, forget_side, locked_step, message_for, roll_back
from models import IS_AT_GATE, Attempt, Migration, MigrationState, Node, Phase, Side, Step, StepState

# Taking a step counts it up, and so does losing it.
_FENCE_AFTER_TWO_LOSSES = 4
_HELD = (Step.state.in_((StepState.RUNNING, StepState.UNDOING)), Step.lease_until.is_not(None))


def sweep(context: Context) -> None:
    """Find steps that wait for a worker: messages that were lost, workers that died, nodes that are silent.

    Migrations whose time is over are undone.
    """
    moment = now()
    for attempt_id in _overdue(context, moment):
        with context.unit() as unit:
            end_overdue(unit, unit.session.get_one(Attempt, attempt_id, with_for_update=True), moment)
    for attempt_id in _cancelled_at_gate(context):
        with context.unit() as unit:
            attempt = unit.session.get_one(Attempt, attempt_id, with_for_update=True)
            if is_at_gate(attempt) and attempt.migration.cancel_asked:
                roll_back(unit, attempt.migration, attempt)
    near = timedelta(seconds=context.settings.reconcile_s)
    old = ~Step.ready_at.between(moment - near, moment + near)
    waiting = (Step.state.in_((StepState.READY, StepState.UNDO_READY)), old)
    for step_id, lease in _ended_leases(context).items():
        with context.unit() as unit:
            step = locked_step(unit.session, step_id, *_HELD)
            if step and _lease(context, step) == lease:
                _lost_worker(unit, step)
    silent = _silent_nodes(context)
    for step_id in _step_ids(context, *waiting):
        with context.unit() as unit:
            if step := locked_step(unit.session, step_id, *waiting):
                _not_taken(unit, step, silent)


def _lease(context: Context, step: Step) -> Seen:
    """Its lease as it is looked at: another one with each renewal. A worker of an older version says no length."""
    length_s = context.settings.lease_s if step.lease_s is None else step.lease_s
    return Seen((step.fence, step.lease_until), length_s)


def _ended_leases(context: Context) -> dict[int, Seen]:
    """The steps that somebody has taken, and whose lease nobody renews any more."""
    asked = context.sightings.moment()
    with context.database.read() as session:
        leases = {step.id: _lease(context, step) for step in session.scalars(select(Step).where(*_HELD))}
    return {step_id: leases[step_id] for step_id in context.sightings.unchanged("steps", leases, asked=asked)}


@dataclass(frozen=True, slots=True)
class _Silence:
    """A node that does not beat any more since this beat, and what people are told of it."""

    heartbeat_at: datetime | None
    problem: Problem


def _silent_nodes(context: Context) -> dict[int, _Silence]:
    """The nodes whose workers do not beat any more."""
    limit_s, asked, moment = context.settings.node_silent_after_s, context.sightings.moment(), now()
    with context.database.read() as session:
        nodes = {row.id: row for row in session.execute(select(Node.id, Node.name, Node.heartbeat_at))}
    beats = {node_id: beat_seen(node.heartbeat_at, limit_s=limit_s) for node_id, node in nodes.items()}
    found = {}
    for node_id in context.sightings.unchanged("nodes", beats, asked=asked):
        name, beat = nodes[node_id].name, nodes[node_id].heartbeat_at
        # By the time of day, if that says anything.
        silent_s = max(limit_s, (moment - beat).total_seconds()) if beat else inf
        found[node_id] = _Silence(beat, silent_node(name, silent_s))
    return found


def end_overdue(unit: Unit, attempt: Attempt, moment: datetime) -> None:
    """Undo an attempt whose migration has taken longer than it may. Nothing happens to one that was handed over."""
    migration = attempt.migration
    limit_s = migration.timeout_s
    if not limit_s or migration.state is not MigrationState.RUNNING:
        return
    if attempt.started_at + timedelta(seconds=limit_s) + _stood_at_gate(attempt, moment) < moment:
        words = f"the migration is not over after {limit_s:g} s"
        remember(migration, (Problem("timed_out", words, "haulier migrate --timeout-s allows longer."),))
        roll_back(unit, migration, attempt)


def _stood_at_gate(attempt: Attempt, moment: datetime) -> timedelta:
    """Waiting is no work, and its end is not the migration's to decide."""
    if attempt.at_gate_since is None:
        return timedelta()
    return (attempt.moving_at or moment) - attempt.at_gate_since


def _overdue(context: Context, moment: datetime) -> list[int]:
    """The open attempts of migrations with a limit that were begun long enough ago to be looked at."""
    wanted = (Migration.state == MigrationState.RUNNING, Migration.timeout_s > 0, Attempt.started_at < moment)
    with context.database.read() as session:
        query = select(Attempt.id).join(Attempt.migration).where(*wanted, Attempt.finished_at.is_(None))
        return list(session.scalars(query.order_by(Attempt.id)))


def _cancelled_at_gate(context: Context) -> list[int]:
    """Nobody works at these who would notice, and whoever cancelled one may have died before it was undone."""
    wanted = (Migration.state == MigrationState.RUNNING, Migration.cancel_asked.is_(True))
    with context.database.read() as session:
        return list(session.scalars(select(Attempt.id).join(Attempt.migration).where(IS_AT_GATE, *wanted)))


def _step_ids(context: Context, *conditions: ColumnElement[bool]) -> list[int]:
    with context.database.read() as session:
        return list(session.scalars(select(Step.id).where(*conditions).order_by(Step.id)))


def _lost_worker(unit: Unit, step: Step) -> None:
    """Whoever had taken the step is not heard any more; what it may still do counts no more."""
    step.fence += 1
    migration = step.attempt.migration
    unit.note("step.lost", vm=migration.vm.name, migration=migration.id, phase=step.phase, side=step.side)
    problem = Problem("worker_lost", f"the worker of {step.phase} on {step.queue} did not finish", "See its log.")
    _decided(unit, step, problem, lease_over=True)


def _not_taken(unit: Unit, step: Step, silent: Mapping[int, _Silence]) -> None:
    migration = step.attempt.migration
    if migration.needs_operator:
        return
    node = {Side.SOURCE: migration.source, Side.TARGET: migration.target}.get(step.side)
    silence = silent.get(node.id) if node else None
    # It may have come back since.
    still = silence if node and silence and node.heartbeat_at == silence.heartbeat_at else None
    _decided(unit, step, still.problem if still else None, lease_over=False)


def _decided(unit: Unit, step: Step, problem: Problem | None, *, lease_over: bool) -> None:
    """Do with the step what the table says; `problem` is what people are told if its attempt ends here."""
    migration = step.attempt.migration
    finding = StepFinding(
        lease_over=lease_over,
        undo=step.state in (StepState.UNDO_READY, StepState.UNDOING),
        handed_over=migration.state is MigrationState.HANDED_OVER,
        node_silent=problem is not None and not lease_over,
        before_touching=step.phase is Phase.CHECK and migration.state is MigrationState.RUNNING,
        lost_often=step.fence > _FENCE_AFTER_TWO_LOSSES,
        sync_target=migration.replication_id is not None and step.side is Side.TARGET,
    )
    match decide_step(finding):
        case StepAct.RUN_AGAIN:
            _send_again(unit, step, StepState.READY)
        case StepAct.UNDO_AGAIN:
            _send_again(unit, step, StepState.UNDO_READY)
        case StepAct.SEND_AGAIN:
            unit.send(message_for(step))
        case StepAct.GO_PAST:
            unit.send(message_for(step))
            advance_undo(unit, step.attempt, silent=step.side)
        case StepAct.LET_GO:
            forget_side(unit, step.attempt, step.side)
            if finding.handed_over:
                finish_if_done(unit, step.attempt)
            else:
                advance_undo(unit, step.attempt)
        case StepAct.REFUSE if problem:
            _end_step(step, problem)
            end_failed(unit, step.attempt, MigrationState.REFUSED)
        case StepAct.ROLL_BACK if problem:
            # Its side's undo waits for a worker, and the other side's does not wait for that.
            step.notes = {**step.notes, LOST: True}
            _end_step(step, problem)
            roll_back(unit, migration, step.attempt)


def _send_again(unit: Unit, step: Step, state: StepState) -> None:
    step.state, step.ready_at = state, now()
    unit.send(message_for(step))


def _end_step(step: Step, problem: Problem) -> None:
    """The step failed without its worker saying so."""
    step.state, step.problem, step.finished_at = StepState.FAILED, problem.as_dict(), now()
    remember(step.attempt.migration, (problem,))


def take_up_again(context: Context, migration_id: int) -> None:
    """After an operator has looked: go on where it stopped, forward if the target has the guest, else backward."""
    with context.unit() as unit:
        migration = unit.session.get_one(Migration, migration_id)
        attempt = unit.session.get_one(Attempt, migration.attempts[-1].id, with_for_update=True, populate_existing=True)
        unit.session.refresh(migration)
        migration.needs_operator, migration.problems = False, []
        unit.note("migration.taken_up_again", vm=migration.vm.name, migration=migration_id)
        for step in attempt.steps:
            if step.state is StepState.UNDO_READY:
                unit.send(message_for(step))
        if migration.state is MigrationState.ROLLING_BACK:
            advance_undo(unit, attempt)
            return
        for step in attempt.steps:
            if step.state is StepState.FAILED:
                step.state, step.ready_at = StepState.READY, now()
                unit.send(message_for(step))
        finish_if_done(unit, attempt)


def look_after_partner(unit: Unit, step: Step, sightings: Sightings, *, asked: float) -> None:
    """Of two that work side by side, each sees that the other has died, whoever else is there to notice.

    `asked` is from before the attempt was locked: the partner cannot renew while we have it.
    """
    others = {
        other.id: other
        for other in step.attempt.steps
        if other.id != step.id and other.state is StepState.RUNNING and other.lease_until
    }
    leases = {number: _lease(unit.context, other) for number, other in others.items()}
    for number in sightings.unchanged("partners", leases, asked=asked):
        _lost_worker(unit, others[number])


def take_back(context: Context, queue: str) -> None:
    """A worker begins, and is the only one on this queue: whatever an earlier one had in hand is nobody's now."""
    held = (Step.queue == queue, Step.state.in_((StepState.RUNNING, StepState.UNDOING)))
    for step_id in _step_ids(context, *held):
        with context.unit() as unit:
            if step := locked_step(unit.session, step_id, *held):
                _lost_worker(unit, step)
