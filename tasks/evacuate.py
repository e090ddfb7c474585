"""An evacuation is looked at: one of its migrations has ended, or somebody asked for it."""

from __future__ import annotations

from haulier.services.evacuation_steps import go_on
from tasks.celery import app
from tasks.surroundings import context


@app.task(name="haulier.evacuate")
def evacuate(evacuation_id: int) -> None:
    """File what is to be filed of it, and write down how it stands. Beat does the same for all."""
    go_on(context(), evacuation_id)
