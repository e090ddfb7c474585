"""What is done about a VM that may be stopped for its move, or was: one table, asked again and again. Pure.

Whoever asks has looked at the rows under their locks; that the same is found twice does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from haulier.planner.recovery import Rule

# So long a VM may be off and wait for its move to begin; so long a stop may wait for its worker.
BEGINS_IN_S = 60.0


class ConsentAct(StrEnum):
    """What becomes of it."""

    WAIT = "wait"
    STOP = "stop it"
    START = "start it where it is"
    TELL = "tell why it does not run"
    MAKE_WAY = "have its sync make way"
    TAKE_BACK = "take the stop back"
    NOT_STOPPED = "tell that it was not stopped"
    FORGET = "forget the consent"
    OVER = "all is over: it runs"


@dataclass(frozen=True, slots=True)
class ConsentFinding:
    """A VM that somebody consented to stop; `stopping`: for that its stop was filed, and the consent is used up.

    `holds`: the consent is still good for something. `goes_on`: its evacuation moves, and is not paused. `has_room`:
    there is a place for it, and its move would begin now. `stop_unwanted`: nobody has taken the stop or is to.
    `at_work`: a migration or an operation; `sync_at_work`: a sync. `stop_failed`: the stop is the last that was done.
    `unseen`: it failed in the middle, and its node has yet to say whether the guest is there. `runs`: it does, or did
    after the stop. `is_off`: it is stopped, as it was told to. `may_move`: its move is yet to begin, and has time.
    `start_waits`: nobody has taken the start for so long. `start_failed`: that was the last that was done. `slow_beat`:
    what has failed is tried again now.
    """

    stopping: bool
    holds: bool = False
    goes_on: bool = False
    has_room: bool = False
    stop_unwanted: bool = False
    at_work: bool = False
    sync_at_work: bool = False
    node_lost: bool = False
    stop_failed: bool = False
    unseen: bool = False
    runs: bool = False
    is_off: bool = False
    may_move: bool = False
    start_waits: bool = False
    start_failed: bool = False
    slow_beat: bool = False


_A = ConsentAct
CONSENT_RULES: tuple[Rule[ConsentAct], ...] = (
    Rule(_A.FORGET, "the consent", "what it was given for is gone", {"stopping": False, "holds": False}),
    Rule(_A.WAIT, "the evacuation", "paused it begins nothing", {"stopping": False, "goes_on": False}),
    Rule(_A.WAIT, "the VM", "somebody works on it", {"stopping": False, "at_work": True}),
    Rule(_A.WAIT, "the queue", "it would be off for nothing", {"stopping": False, "has_room": False}),
    Rule(_A.MAKE_WAY, "the sync", "it reads what the guest writes", {"stopping": False, "sync_at_work": True}),
    Rule(_A.STOP, "the room", "its move begins when it is off", {"stopping": False}),
    Rule(_A.TAKE_BACK, "the stop", "its worker would carry it out much later", {"stop_unwanted": True}),
    Rule(_A.TELL, "the start", "it waits for a worker, and nobody knows for how long", {"start_waits": True}),
    Rule(_A.WAIT, "the VM", "somebody works on it", {"at_work": True}),
    Rule(_A.TELL, "the node", "nothing is started where a host is off", {"node_lost": True}),
    Rule(_A.WAIT, "the guest", "it may be off: its node looks first", {"unseen": True}),
    Rule(
        _A.NOT_STOPPED,
        "the stop",
        "a guest that withstood once is asked about again",
        {"stop_failed": True, "runs": True},
    ),
    Rule(_A.OVER, "the guest", "it runs, whoever has started it", {"runs": True}),
    Rule(_A.TELL, "the guest", "nobody knows how it ended", {"is_off": False}),
    Rule(_A.WAIT, "the move", "it is about to begin", {"may_move": True}),
    Rule(
        _A.TELL, "the last start", "it is tried again, but not at each beat", {"start_failed": True, "slow_beat": False}
    ),
    Rule(_A.MAKE_WAY, "the sync", "it works on the volumes", {"sync_at_work": True}),
    Rule(_A.START, "the move", "there is none that it is off for"),
)


def decide_consent(finding: ConsentFinding) -> ConsentAct:
    """What the first row that fits says."""
    fits = (rule for rule in CONSENT_RULES if all(getattr(finding, name) is value for name, value in rule.when.items()))
    return next(fits).act
