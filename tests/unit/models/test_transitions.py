"""The tables of legal moves: where they begin and end, and that `require_legal` accepts them and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from itertools import product
from typing import Any

import pytest

from models.enums import LedgerRole, MigrationState, OperationState, RollNodeState, RollState, StepState
from models.transitions import (
    LEDGER,
    MIGRATION,
    OPEN_MIGRATION,
    OPERATION,
    ROLL,
    ROLL_NODE,
    STEP,
    IllegalMove,
    require_legal,
)

Table = Mapping[Any, frozenset[Any]]

TABLES: dict[type[StrEnum], Table] = {
    MigrationState: MIGRATION,
    StepState: STEP,
    LedgerRole: LEDGER,
    OperationState: OPERATION,
    RollState: ROLL,
    RollNodeState: ROLL_NODE,
}
STARTS: dict[type[StrEnum], StrEnum] = {
    MigrationState: MigrationState.QUEUED,
    StepState: StepState.WAITING,
    LedgerRole: LedgerRole.RESERVED,
    OperationState: OperationState.READY,
    RollState: RollState.RUNNING,
    RollNodeState: RollNodeState.WAITING,
}
ENDS: dict[type[StrEnum], set[StrEnum]] = {
    MigrationState: {
        MigrationState.DONE,
        MigrationState.UNDONE,
        MigrationState.REFUSED,
        MigrationState.CANCELLED,
    },
    StepState: {StepState.UNDONE},
    LedgerRole: {LedgerRole.DESTROYED},
    OperationState: {OperationState.DONE, OperationState.REFUSED, OperationState.FAILED},
    RollState: {RollState.DONE, RollState.CANCELLED},
    RollNodeState: {RollNodeState.DONE, RollNodeState.LEFT_OUT},
}
STATES = [state for kind in TABLES for state in kind]

KINDS = pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)


def reachable(table: Table, start: StrEnum) -> set[StrEnum]:
    """All states that can come after `start`, by any number of moves; `start` itself only if a move leads back."""
    found: set[StrEnum] = set()
    waiting = list(table[start])
    while waiting:
        state = waiting.pop()
        if state not in found:
            found.add(state)
            waiting.extend(table[state])
    return found


@KINDS
def test_every_word_stands_in_its_table(kind: type[StrEnum]) -> None:
    assert set(TABLES[kind]) == set(kind)


@KINDS
def test_every_state_is_reachable_from_the_start(kind: type[StrEnum]) -> None:
    assert reachable(TABLES[kind], STARTS[kind]) | {STARTS[kind]} == set(kind)


@KINDS
def test_only_terminal_states_have_no_exit(kind: type[StrEnum]) -> None:
    assert {state for state, after in TABLES[kind].items() if not after} == ENDS[kind]


@KINDS
def test_an_end_can_be_reached_from_everywhere(kind: type[StrEnum]) -> None:
    for state in set(kind) - ENDS[kind]:
        assert reachable(TABLES[kind], state) & ENDS[kind], state


@KINDS
def test_no_state_moves_to_itself(kind: type[StrEnum]) -> None:
    assert not [state for state, after in TABLES[kind].items() if state in after]


_ONE_ATTEMPT = {**MIGRATION, MigrationState.QUEUED: frozenset[MigrationState]()}


@pytest.mark.parametrize(
    ("won", "lost"),
    [
        (MigrationState.HANDED_OVER, MigrationState.ROLLING_BACK),
        (MigrationState.ROLLING_BACK, MigrationState.HANDED_OVER),
    ],
)
def test_handed_over_and_rolling_back_exclude_each_other(won: MigrationState, lost: MigrationState) -> None:
    """By any number of moves of one attempt: whoever won may have resumed the guest, so the other side must never be
    told to. Another attempt begins in the queue, when nothing is left of the first.
    """
    assert lost not in reachable(_ONE_ATTEMPT, won)


def test_both_answers_come_from_the_same_state_only() -> None:
    """Both sides compare with the same `before`, so only one of them can win."""
    before_hand_over = {state for state, after in MIGRATION.items() if MigrationState.HANDED_OVER in after}
    before_rolling_back = {state for state, after in MIGRATION.items() if MigrationState.ROLLING_BACK in after}
    assert before_hand_over == before_rolling_back == {MigrationState.RUNNING}


def test_after_the_hand_over_there_is_only_the_way_forward() -> None:
    assert reachable(MIGRATION, MigrationState.HANDED_OVER) == {MigrationState.DONE}


def test_after_the_way_back_began_there_is_only_the_way_back() -> None:
    ends = {MigrationState.UNDONE, MigrationState.CANCELLED, MigrationState.QUEUED}
    assert reachable(_ONE_ATTEMPT, MigrationState.ROLLING_BACK) == ends


def test_waiting_for_an_operator_is_no_state() -> None:
    """A state that both decisions could reach would lead from the one to the other: it is a column beside the state."""
    assert "needs_operator" not in set(MigrationState)


def test_open_migrations_are_those_that_have_not_ended() -> None:
    assert set(OPEN_MIGRATION) == set(MigrationState) - ENDS[MigrationState]
    assert len(OPEN_MIGRATION) == len(set(OPEN_MIGRATION))


def test_destroyed_state_never_comes_back() -> None:
    assert LedgerRole.ACTIVE not in reachable(LEDGER, LedgerRole.QUARANTINED)
    assert LedgerRole.ACTIVE not in reachable(LEDGER, LedgerRole.DESTROYED)


def is_legal(before: StrEnum, after: StrEnum) -> bool:
    return type(before) is type(after) and after in TABLES[type(before)][before]


@pytest.mark.parametrize("before", STATES, ids=lambda state: f"{type(state).__name__}.{state}")
def test_require_legal_accepts_exactly_the_table(before: StrEnum) -> None:
    """Against every state of every kind: `done` of a step is not `done` of a migration, though the words are equal."""
    for after in STATES:
        if is_legal(before, after):
            require_legal(before, after)
        else:
            with pytest.raises(IllegalMove) as caught:
                require_legal(before, after)
            assert (caught.value.before, caught.value.after) == (before, after)


def test_refusal_says_what_was_asked() -> None:
    with pytest.raises(IllegalMove, match="MigrationState cannot go from done to running"):
        require_legal(MigrationState.DONE, MigrationState.RUNNING)


def test_words_that_are_no_state_are_refused() -> None:
    class Colour(StrEnum):
        RED = "red"
        DONE = "done"

    for before, after in product(Colour, repeat=2):
        with pytest.raises(IllegalMove):
            require_legal(before, after)
