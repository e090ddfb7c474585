"""Who has a node emptied or closed, if it is no person: `alert 5`, `window 2`, `roll 1`. People read it, and rows are
found again by it.
"""

from __future__ import annotations

ALERT, WINDOW, ROLL = "alert", "window", "roll"


def cause_of(kind: str, number: int) -> str:
    """What an evacuation, or a node that is closed, says of who asked for that."""
    return f"{kind} {number}"


def number_of(cause: str | None, kind: str) -> int | None:
    """Which one of this kind it was; None if it was another one, or a person."""
    word, _, number = (cause or "").partition(" ")
    return int(number) if word == kind and number.isdecimal() else None
