"""The errors of Haulier, grouped by what happens next.

    HaulierError
    ├── Refused          nothing was touched: tell the caller (exit status 2, HTTP 409)
    ├── Transient        the same step may run again after `retry_after_s`
    ├── StepFailed       this attempt is over: undo in reverse order
    ├── OutcomeUnknown   the command may or may not have run: look at both sides, then decide
    └── NeedsOperator    nobody may guess: stop, keep everything, shout

Each has a stable `code`, a `message` (with the underlying tool's own words) and a `hint` that says what to do.
This module knows no other; everybody may import it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """What went wrong, in the three parts that every error shows: a stable code, a sentence, what to do about it."""

    code: str
    message: str
    hint: str = ""

    def as_dict(self) -> dict[str, str]:
        """The form in which JSON output, rows and events carry it."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


def meant(name: str, there: Iterable[str]) -> str | None:
    """The question whether that name among these was meant which is most like it; None if none is."""
    near = difflib.get_close_matches(name, list(there), n=1)
    return f"Did you mean {near[0]}?" if near else None


class HaulierError(Exception):
    """Root of all errors that Haulier raises on purpose."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.problem = Problem(code, message, hint)

    @property
    def code(self) -> str:
        return self.problem.code


class Refused(HaulierError):
    """Nothing was touched. May carry several reasons, because a check names all of them at once."""

    def __init__(self, code: str, message: str, hint: str = "", *, others: tuple[Problem, ...] = ()) -> None:
        super().__init__(code, message, hint)
        self.problems = (self.problem, *others)

    @classmethod
    def because(cls, problems: tuple[Problem, ...]) -> Refused:
        """Make one refusal out of a non-empty list of reasons."""
        first, *others = problems
        return cls(first.code, first.message, first.hint, others=tuple(others))


class Transient(HaulierError):
    """The same step may run again; `retry_after_s` is the thrower's advice in seconds."""

    def __init__(self, code: str, message: str, hint: str = "", *, retry_after_s: float = 1.0) -> None:
        super().__init__(code, message, hint)
        self.retry_after_s = retry_after_s


class StepFailed(HaulierError):
    """This attempt is over; whatever it did is to be undone in reverse order."""


class OutcomeUnknown(HaulierError):
    """A command was sent and its answer never came: it may or may not have run."""


class NeedsOperator(HaulierError):
    """Nobody may guess: everything is kept as it is and a person is asked."""
