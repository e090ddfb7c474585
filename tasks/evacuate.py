"""An evacuation is looked at: one of its migrations has ended, or somebody asked for it."""

from __future__ import annotations

from functools import lru_cache

from haulier.services.evacuation_steps import go_on
from tasks.celery import app
from tasks.coalescing import Coalesced
from tasks.surroundings import context


@lru_cache(maxsize=256)
def _look_at(evacuation_id: int) -> Coalesced:
    """Each end of a migration asks for it, and of a node with hundreds many end at one moment."""
    return Coalesced(lambda: go_on(context(), evacuation_id))


@app.task(name="haulier.evacuate")
def evacuate(evacuation_id: int) -> None:
    """File what is to be filed of it, and write down how it stands. Beat does the same for all."""
    _look_at(evacuation_id)()
