"""The legal moves of every row that has a state, beside nothing else: read it to know what can ever happen."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from models.enums import (
    EvacuationState,
    LedgerRole,
    MigrationState,
    OperationState,
    RollNodeState,
    RollState,
    StepState,
)

# A table reads better with short heads.
M, S, L, O, E = MigrationState, StepState, LedgerRole, OperationState, EvacuationState  # noqa: E741
R, N = RollState, RollNodeState

MIGRATION: Mapping[MigrationState, frozenset[MigrationState]] = {
    M.QUEUED: frozenset({M.RUNNING, M.REFUSED, M.CANCELLED}),
    M.RUNNING: frozenset({M.HANDED_OVER, M.ROLLING_BACK, M.REFUSED, M.QUEUED}),
    M.HANDED_OVER: frozenset({M.DONE}),
    M.ROLLING_BACK: frozenset({M.UNDONE, M.CANCELLED, M.QUEUED}),
    M.DONE: frozenset(),
    M.UNDONE: frozenset(),
    M.REFUSED: frozenset(),
    M.CANCELLED: frozenset(),
}

STEP: Mapping[StepState, frozenset[StepState]] = {
    S.WAITING: frozenset({S.READY}),
    S.READY: frozenset({S.RUNNING, S.WAITING}),
    S.RUNNING: frozenset({S.DONE, S.FAILED, S.READY}),
    S.DONE: frozenset({S.UNDO_READY}),
    S.FAILED: frozenset({S.UNDO_READY, S.READY}),
    S.UNDO_READY: frozenset({S.UNDOING}),
    S.UNDOING: frozenset({S.UNDONE, S.UNDO_READY}),
    S.UNDONE: frozenset(),
}

LEDGER: Mapping[LedgerRole, frozenset[LedgerRole]] = {
    L.RESERVED: frozenset({L.ACTIVE, L.DESTROYED}),
    L.ACTIVE: frozenset({L.QUARANTINED, L.DESTROYED}),
    L.QUARANTINED: frozenset({L.DESTROYED}),
    L.DESTROYED: frozenset(),
}

OPERATION: Mapping[OperationState, frozenset[OperationState]] = {
    O.READY: frozenset({O.RUNNING, O.FAILED}),
    O.RUNNING: frozenset({O.DONE, O.REFUSED, O.FAILED}),
    O.DONE: frozenset(),
    O.REFUSED: frozenset(),
    O.FAILED: frozenset(),
}

EVACUATION: Mapping[EvacuationState, frozenset[EvacuationState]] = {
    E.PLANNED: frozenset({E.RUNNING, E.PAUSED, E.BLOCKED, E.DRAINED, E.CANCELLED}),
    E.RUNNING: frozenset({E.PAUSED, E.BLOCKED, E.DRAINED, E.CANCELLED}),
    E.PAUSED: frozenset({E.RUNNING, E.CANCELLED}),
    E.BLOCKED: frozenset({E.RUNNING, E.DRAINED, E.PAUSED, E.CANCELLED, E.RESTORING}),
    E.DRAINED: frozenset({E.RUNNING, E.CANCELLED, E.RESTORING}),
    E.CANCELLED: frozenset({E.RESTORING}),
    E.RESTORING: frozenset({E.RESTORED, E.CANCELLED}),
    E.RESTORED: frozenset({E.RESTORING}),
}

ROLL: Mapping[RollState, frozenset[RollState]] = {
    R.RUNNING: frozenset({R.PAUSED, R.DONE, R.CANCELLED}),
    R.PAUSED: frozenset({R.RUNNING, R.DONE, R.CANCELLED}),
    R.DONE: frozenset(),
    R.CANCELLED: frozenset(),
}

# Whose evacuation somebody has cancelled waits for another turn.
ROLL_NODE: Mapping[RollNodeState, frozenset[RollNodeState]] = {
    N.WAITING: frozenset({N.OUT, N.LEFT_OUT}),
    N.OUT: frozenset({N.DONE, N.WAITING, N.LEFT_OUT}),
    N.DONE: frozenset(),
    N.LEFT_OUT: frozenset(),
}

OPEN_ROLL: tuple[RollState, ...] = (R.RUNNING, R.PAUSED)
# Its node belongs to it.
OPEN_EVACUATION: tuple[EvacuationState, ...] = (E.PLANNED, E.RUNNING, E.PAUSED, E.BLOCKED, E.DRAINED, E.RESTORING)
OPEN_OPERATION: tuple[OperationState, ...] = (O.READY, O.RUNNING)
# Somebody works on the VM, or will before anybody else may.
AT_WORK: tuple[MigrationState, ...] = (M.RUNNING, M.HANDED_OVER, M.ROLLING_BACK)
OPEN_MIGRATION: tuple[MigrationState, ...] = (M.QUEUED, *AT_WORK)
# On its way forward.
GOING_ON: tuple[MigrationState, ...] = (M.RUNNING, M.HANDED_OVER)


class IllegalMove(ValueError):
    """The code asked for a move that the table does not have: a mistake in the code, never of a user."""

    def __init__(self, before: StrEnum, after: StrEnum) -> None:
        super().__init__(f"{type(before).__name__} cannot go from {before} to {after}")
        self.before = before
        self.after = after


_TABLES: tuple[Mapping[Any, frozenset[Any]], ...] = (MIGRATION, STEP, LEDGER, OPERATION, EVACUATION, ROLL, ROLL_NODE)


def require_legal(before: StrEnum, after: StrEnum) -> None:
    """Raise `IllegalMove` unless the table of this kind of state has the move from `before` to `after`."""
    for table in _TABLES:
        if before in table and type(before) is type(next(iter(table))):
            if type(after) is type(before) and after in table[before]:
                return
            break
    raise IllegalMove(before, after)
