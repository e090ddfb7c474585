"""The phase tables: which phases a migration has, live and offline, and which the sync of a replica; where each runs,
and what must be done before it.

A phase is a verb, and the one word is the enum value, the module in tasks/, the task's name, the log's `action` and the
label in the command line. These tables are the chains: nothing else says what follows on what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from enum import StrEnum

from models.enums import StepState


class Phase(StrEnum):
    """The nine phases of a migration in their order, and the two that only a sync has."""

    CHECK = "check"
    RESERVE = "reserve"
    SYNC_TPM = "sync_tpm"
    COPY_COLD = "copy_cold"
    OPEN_TARGET = "open_target"
    MIRROR_DISKS = "mirror_disks"
    MOVE_MEMORY = "move_memory"
    HAND_OVER = "hand_over"
    RETIRE_SOURCE = "retire_source"
    SEND_GENERATION = "send_generation"
    TAKE_GENERATION = "take_generation"


class Side(StrEnum):
    """Where a step runs; `control` is the worker that belongs to no node."""

    CONTROL = "control"
    SOURCE = "source"
    TARGET = "target"


@dataclass(frozen=True, slots=True)
class PhaseRule:
    """One row of the phase table: a phase on one side and the (phase, side) pairs that must be done before it.

    `beside` are those that must be at work and have said that they are waiting for this one. At a `gate` it waits until
    the limits let its attempt through.
    """

    phase: Phase
    side: Side
    after: tuple[tuple[Phase, Side], ...] = ()
    beside: tuple[tuple[Phase, Side], ...] = ()
    gate: bool = False


_UNTIL_RESERVED: tuple[PhaseRule, ...] = (
    PhaseRule(Phase.CHECK, Side.CONTROL),
    PhaseRule(Phase.CHECK, Side.SOURCE, ((Phase.CHECK, Side.CONTROL),)),
    PhaseRule(Phase.CHECK, Side.TARGET, ((Phase.CHECK, Side.SOURCE),)),
    PhaseRule(Phase.RESERVE, Side.TARGET, ((Phase.CHECK, Side.TARGET),)),
)

_UNTIL_COPIED: tuple[PhaseRule, ...] = (
    *_UNTIL_RESERVED,
    PhaseRule(Phase.SYNC_TPM, Side.SOURCE, ((Phase.RESERVE, Side.TARGET),)),
    PhaseRule(Phase.COPY_COLD, Side.SOURCE, ((Phase.SYNC_TPM, Side.SOURCE),)),
)

# The rows stand in the order of the chain; undoing goes through them backwards.
LIVE_CHAIN: tuple[PhaseRule, ...] = (
    *_UNTIL_COPIED,
    PhaseRule(Phase.OPEN_TARGET, Side.TARGET, ((Phase.COPY_COLD, Side.SOURCE),)),
    PhaseRule(Phase.MIRROR_DISKS, Side.SOURCE, ((Phase.OPEN_TARGET, Side.TARGET),)),
    # No guest is paused before somebody is there to take it.
    PhaseRule(
        Phase.MOVE_MEMORY, Side.SOURCE, ((Phase.MIRROR_DISKS, Side.SOURCE),), beside=((Phase.HAND_OVER, Side.TARGET),)
    ),
    # Of many that are prepared few move their RAM at once.
    PhaseRule(Phase.HAND_OVER, Side.TARGET, ((Phase.MIRROR_DISKS, Side.SOURCE),), gate=True),
    PhaseRule(Phase.RETIRE_SOURCE, Side.SOURCE, ((Phase.MOVE_MEMORY, Side.SOURCE), (Phase.HAND_OVER, Side.TARGET))),
)

# A VM that does not run has no RAM to move and nobody who writes: all its volumes are cold.
OFFLINE_CHAIN: tuple[PhaseRule, ...] = (
    *_UNTIL_COPIED,
    PhaseRule(Phase.HAND_OVER, Side.TARGET, ((Phase.COPY_COLD, Side.SOURCE),)),
    PhaseRule(Phase.RETIRE_SOURCE, Side.SOURCE, ((Phase.HAND_OVER, Side.TARGET),)),
)


# A sync moves no guest: the target takes the generation when all of it has arrived.
SYNC_CHAIN: tuple[PhaseRule, ...] = (
    *_UNTIL_RESERVED,
    PhaseRule(Phase.SEND_GENERATION, Side.SOURCE, ((Phase.RESERVE, Side.TARGET),)),
    PhaseRule(Phase.TAKE_GENERATION, Side.TARGET, ((Phase.SEND_GENERATION, Side.SOURCE),)),
)


def chain_of(*, offline: bool, sync: bool = False) -> tuple[PhaseRule, ...]:
    """The chain of a migration, or of a sync, which is the same whether the VM runs or not."""
    if sync:
        return SYNC_CHAIN
    return OFFLINE_CHAIN if offline else LIVE_CHAIN


def may_begin(
    chain: Iterable[PhaseRule],
    states: Mapping[tuple[Phase, Side], StepState],
    standing_by: Set[tuple[Phase, Side]] = frozenset(),
) -> tuple[PhaseRule, ...]:
    """The rules of a chain whose steps wait and have all that they need, but for the limits of a gate.

    `standing_by` are the steps at work that have said that they wait for another one.
    """
    done = {step for step, state in states.items() if state is StepState.DONE}
    return tuple(
        rule
        for rule in chain
        if states[rule.phase, rule.side] is StepState.WAITING
        and done.issuperset(rule.after)
        and (done | standing_by).issuperset(rule.beside)
    )


# The moments inside the pause, in the order in which they come; each is noted on the row of the step that saw it.
PAUSE_MARKS: tuple[str, ...] = ("paused", "mirrors_finished", "stream_done", "proved", "committed", "resumed")
