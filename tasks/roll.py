"""A roll is looked at: an evacuation of one of its nodes has changed its state, or beat asks."""

from __future__ import annotations

from functools import lru_cache

from haulier.services.roll_steps import go_on
from tasks.celery import app
from tasks.coalescing import Coalesced
from tasks.surroundings import context


@lru_cache(maxsize=256)
def _look_at(roll_id: int) -> Coalesced:
    """To begin a node takes seconds, and messages come meanwhile."""
    return Coalesced(lambda: go_on(context(), roll_id))


@app.task(name="haulier.roll")
def roll(roll_id: int) -> None:
    """Write down how its nodes stand, and begin the next ones. Beat does the same for all."""
    _look_at(roll_id)()
