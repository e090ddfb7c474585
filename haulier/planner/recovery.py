"""What is done with what somebody left behind: one table for steps of a migration, one for the programs of a VM.

The tables are the decision: services and node workers look, ask `decide_step` or `decide_program`, and do what the
first row that fits says. docs/recovery.md is made from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

Act = TypeVar("Act", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Rule(Generic[Act]):
    """A row: what is done, the fact that decides, why that is right. It fits a finding that has all of `when`."""

    act: Act
    fact: str
    because: str
    when: Mapping[str, bool] = field(default_factory=dict)


class StepAct(StrEnum):
    """What becomes of a step that was found waiting or abandoned."""

    RUN_AGAIN = "run it again"
    UNDO_AGAIN = "undo it again"
    ROLL_BACK = "undo the attempt"
    REFUSE = "refuse the migration"
    GO_PAST = "go on with the other side's undo"
    LET_GO = "wait for its side no longer"
    SEND_AGAIN = "send its message again"


@dataclass(frozen=True, slots=True)
class StepFinding:
    """A step that nobody works on, by facts of the database alone.

    `lease_over`: somebody had taken it and has not renewed its lease; else nobody has taken it for a while.
    `undo`: it is to be undone. `handed_over`: the commit that gives the guest to the target is in the database.
    `node_silent`: no heartbeat of its node. `before_touching`: its phase touches nothing. `lost_often`: it has lost
    several workers already. `sync_target`: it is the target's step of a sync.
    """

    lease_over: bool
    undo: bool
    handed_over: bool
    node_silent: bool
    before_touching: bool
    lost_often: bool
    sync_target: bool = False


STEP_RULES: tuple[Rule[StepAct], ...] = (
    Rule(
        StepAct.UNDO_AGAIN,
        "the step's row says `undoing`, its lease is over",
        "every undo looks at what is really there, and may find its work half done",
        {"lease_over": True, "undo": True},
    ),
    Rule(
        StepAct.RUN_AGAIN,
        "the migration's row says `handed_over`",
        "the guest is the target's: nothing goes back, and what is left to do may be done twice",
        {"lease_over": True, "handed_over": True},
    ),
    Rule(
        StepAct.RUN_AGAIN,
        "a step of `check`, its lease is over for the first or second time",
        "it touches nothing and may be done twice. One that takes its worker down each time must not go on doing so",
        {"lease_over": True, "before_touching": True, "lost_often": False},
    ),
    Rule(
        StepAct.ROLL_BACK,
        "the migration's row does not say `handed_over`, the step's lease is over",
        "nobody knows how far the step came. The target can no longer take the guest once `rolling_back` is written: "
        "both start from `running`, and the fencing number of who was lost is outdated",
        {"lease_over": True},
    ),
    Rule(
        StepAct.LET_GO,
        "the target's step of a sync is to be undone, its node has no heartbeat",
        "no guest is there. What is left is found when the node is back, and no VM must wait for its replica's host",
        {"undo": True, "node_silent": True, "sync_target": True},
    ),
    Rule(
        StepAct.LET_GO,
        "the target's step of a sync that says `handed_over`, its node has no heartbeat",
        "the generation is the replica's, base and overlay together: whoever uses it next merges them first",
        {"handed_over": True, "node_silent": True, "sync_target": True},
    ),
    Rule(
        StepAct.GO_PAST,
        "the step is to be undone, its node has no heartbeat",
        "a target that cannot commit can never let the guest run; one that is paused on the source must not wait for "
        "a host that may not come back. What is left there is undone when it does",
        {"undo": True, "node_silent": True},
    ),
    Rule(
        StepAct.SEND_AGAIN,
        "the step is to be undone, its node lives",
        "the message was lost; if it was not, the second one finds the step taken",
        {"undo": True},
    ),
    Rule(
        StepAct.REFUSE,
        "a step of `check`, its node has no heartbeat",
        "nothing was touched yet",
        {"node_silent": True, "handed_over": False, "before_touching": True},
    ),
    Rule(
        StepAct.ROLL_BACK,
        "the step's node has no heartbeat, and nothing is handed over",
        "the guest runs on the source, and nobody is there who could go on",
        {"node_silent": True, "handed_over": False},
    ),
    Rule(
        StepAct.SEND_AGAIN,
        "the step is ready; its node lives, or the guest is the target's already",
        "the message was lost; if it was not, the second one finds the step taken. After the hand-over there is no way "
        "but forward, however long it waits",
    ),
)


def decide_step(finding: StepFinding) -> StepAct:
    """What the first row that fits says."""
    return _first_that_fits(STEP_RULES, finding)


class ProgramAct(StrEnum):
    """What becomes of a QEMU, swtpm or carrier that a node's worker finds on its host."""

    LEAVE = "leave it"
    TELL = "leave it and tell"
    ADOPT = "write down that it runs"
    STOP = "stop it and tell"


@dataclass(frozen=True, slots=True)
class ProgramFinding:
    """Programs of a VM that run on a host, and what the database says of that VM.

    `known`: there is such a VM. `attended`: an open migration from or to this node, or an open operation, works on it.
    `lives_here`: the VM's row names this node. `should_run`: the row says `running` or `paused`. `has_guest`: one of
    them is a QEMU that was given the guest, with the epoch of that moment noted beside it. `outdated`: the VM's row has
    a higher epoch than that.
    """

    known: bool
    attended: bool
    lives_here: bool
    should_run: bool
    has_guest: bool
    outdated: bool


PROGRAM_RULES: tuple[Rule[ProgramAct], ...] = (
    Rule(
        ProgramAct.TELL,
        "no VM of that name is in the database",
        "it may be another installation's; nobody may guess",
        {"known": False},
    ),
    Rule(
        ProgramAct.LEAVE,
        "an open migration or operation works on the VM here",
        "its steps know what is to be done, and the table above finds them when their worker is gone",
        {"attended": True},
    ),
    Rule(
        ProgramAct.LEAVE,
        "the VM's row names this node and says `running` or `paused`",
        "that is the guest",
        {"lives_here": True, "should_run": True},
    ),
    Rule(
        ProgramAct.STOP,
        "no QEMU among them was ever given the guest",
        "a start or a migration that was given up, or what a guest that ended has left: nothing is in it to lose",
        {"has_guest": False},
    ),
    Rule(
        ProgramAct.STOP,
        "the VM's row names another node, with a higher epoch than this QEMU was given the guest under",
        "the guest went on elsewhere; what runs here is its past, and must not write to anything",
        {"lives_here": False, "outdated": True},
    ),
    Rule(
        ProgramAct.TELL,
        "the VM's row names another node, with no higher epoch than this QEMU was given the guest under",
        "the database knows less than the host does, as one that was restored from a copy: this may be the only "
        "guest there is, and nobody may guess",
        {"lives_here": False},
    ),
    Rule(
        ProgramAct.ADOPT,
        "the VM's row names this node and says `stopped` or `lost`, but its QEMU was given the guest",
        "the worker died between the start and the row, or the database is older than the host; the guest is where "
        "it belongs",
    ),
)


def decide_program(finding: ProgramFinding) -> ProgramAct:
    """What the first row that fits says."""
    return _first_that_fits(PROGRAM_RULES, finding)


def _first_that_fits(rules: Sequence[Rule[Act]], finding: StepFinding | ProgramFinding) -> Act:
    return next(rule.act for rule in rules if all(getattr(finding, name) is value for name, value in rule.when.items()))
