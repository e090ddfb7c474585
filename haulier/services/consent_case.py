"""A VM that somebody consented to stop for its move, as it is found: all that the decision about it depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from haulier.clock import now
from haulier.errors import Problem
from haulier.planner.admission import Room, Wish
from haulier.planner.consents import BEGINS_IN_S, ConsentFinding
from haulier.planner.failures import FailureClass, class_of
from haulier.planner.refusals import STARTED
from haulier.services.context import Context, Unit
from haulier.services.room import load_room, source_node, target_node
from haulier.services.stopped import Since, failed, since_stop
from models import (
    Batch,
    BatchState,
    Evacuation,
    EvacuationPolicy,
    EvacuationState,
    EvacuationVm,
    Gate,
    Migration,
    NodeState,
    Operation,
    OperationKind,
    OperationState,
    Vm,
    VmState,
)
from models.transitions import AT_WORK, OPEN_MIGRATION, OPEN_OPERATION

_E = EvacuationState
# An evacuation in one of these moves its VMs out.
MOVES: tuple[EvacuationState, ...] = (_E.PLANNED, _E.RUNNING, _E.BLOCKED)


def room_left(context: Context, session: Session) -> Room:
    """What the queue's first gate leaves beside those at work, and those that are off already and wait for it."""
    room = load_room(context, session, Gate.PREPARE)
    working = select(Migration.id).where(Migration.vm_id == Vm.id, Migration.state.in_(AT_WORK))
    query = (
        select(source_node.name, target_node.name, EvacuationVm.problem)
        .select_from(EvacuationVm)
        .join(Vm, Vm.id == EvacuationVm.vm_id)
        .join(Evacuation, Evacuation.id == EvacuationVm.evacuation_id)
        .join(source_node, source_node.id == Vm.node_id)
        .join(target_node, target_node.id == EvacuationVm.target_id)
        .where(EvacuationVm.stopped_at.is_not(None), Vm.node_id == Evacuation.node_id, ~working.exists())
    )
    for source, target, problem in session.execute(query):
        if problem is None:
            room.take(source, target)
    return room


@dataclass(slots=True)
class Case:
    """A VM, with all that is written down of it locked. `place`: where it would go now, or why it cannot."""

    unit: Unit
    evacuation: Evacuation
    vm: Vm
    row: EvacuationVm
    place: str | Problem | None
    since: Since = field(init=False)

    def __post_init__(self) -> None:
        stopped = self.row.stopped_at is not None
        self.since = since_stop(self.unit.session, self.row) if stopped else Since(None, None, was_started=False)

    @property
    def is_open(self) -> bool:
        """Whether there is anything to be done."""
        return self.row.consent_at is not None or self.row.stopped_at is not None

    @property
    def is_there(self) -> bool:
        """Whether it is yet to leave."""
        is_outward = self.evacuation.state in (*MOVES, _E.PAUSED)
        return is_outward and self.vm.node_id == self.evacuation.node_id


def finding_of(case: Case, *, slow_beat: bool) -> ConsentFinding:
    """What there is to be known of it now."""
    row, vm, since = case.row, case.vm, case.since
    stopping, goes_on = row.stopped_at is not None, case.is_there and case.evacuation.state in MOVES
    agreed = case.is_there and vm.evacuation is EvacuationPolicy.STOP_BY_CONSENT
    waits = since.stop is not None and since.stop.state is OperationState.READY
    stop_failed = failed(since.newest, OperationKind.STOP)
    return ConsentFinding(
        stopping=stopping,
        holds=agreed and vm.state is VmState.RUNNING and not _is_nowhere(case.place),
        goes_on=goes_on,
        has_room=not stopping and _has_room(case),
        stop_unwanted=waits and not (goes_on and agreed and _is_fresh(row.stopped_at)),
        at_work=_is_busy(case),
        sync_at_work=_syncs(case),
        node_lost=vm.node.state is NodeState.LOST,
        stop_failed=stop_failed,
        unseen=stop_failed and vm.state in STARTED and _is_unseen(case),
        runs=vm.state in STARTED or since.was_started,
        is_off=vm.state is VmState.STOPPED,
        may_move=goes_on and row.problem is None and _is_fresh(since.off_since),
        start_waits=_nobody_takes(since.newest),
        start_failed=failed(since.newest, OperationKind.START),
        slow_beat=slow_beat,
    )


def _is_nowhere(place: str | Problem | None) -> bool:
    """Whether there is no place, and that does not pass by itself."""
    return isinstance(place, Problem) and class_of(place.code) is not FailureClass.PASSING


def _is_fresh(moment: datetime | None) -> bool:
    """Whether less than what may pass has passed since. By the time of day: where a clock jumps, it is over."""
    return moment is not None and abs(now() - moment) < timedelta(seconds=BEGINS_IN_S)


def _nobody_takes(operation: Operation | None) -> bool:
    """Whether this is a start that its node's worker has not begun with for longer than a VM may wait."""
    waits = operation is not None and operation.kind is OperationKind.START and operation.state is OperationState.READY
    return waits and operation is not None and not _is_fresh(operation.created_at)


def _is_unseen(case: Case) -> bool:
    """Whether a stop has just failed that had begun: the guest may be off for all that, or about to be, and its node is
    to say so.
    """
    newest = case.since.newest
    return newest is not None and newest.state is OperationState.FAILED and _is_fresh(newest.finished_at)


def _is_busy(case: Case) -> bool:
    """Whether a migration of it is at work, or where it is to be stopped waits, or an operation is not over."""
    states = AT_WORK if case.row.stopped_at is not None else OPEN_MIGRATION
    own = (Migration.vm_id == case.vm.id, Migration.replication_id.is_(None), Migration.state.in_(states))
    working = (Operation.vm_id == case.vm.id, Operation.state.in_(OPEN_OPERATION))
    queries = (select(Migration.id).where(*own), select(Operation.id).where(*working))
    return any(case.unit.session.scalar(query.limit(1)) is not None for query in queries)


def _syncs(case: Case) -> bool:
    own = (Migration.vm_id == case.vm.id, Migration.replication_id.is_not(None), Migration.state.in_(AT_WORK))
    return case.unit.session.scalar(select(Migration.id).where(*own).limit(1)) is not None


def _has_room(case: Case) -> bool:
    """Whether its move would begin if it were off now."""
    session, source, target = case.unit.session, case.vm.node.name, case.place
    if not isinstance(target, str):
        return False
    closed = (Batch.evacuation_id == case.evacuation.id, Batch.homeward.is_(False), Batch.state != BatchState.OPEN)
    if session.scalar(select(Batch.id).where(*closed).limit(1)) is not None:
        return False
    return room_left(case.unit.context, session).hold_of(Wish(0, source, target)) is None
