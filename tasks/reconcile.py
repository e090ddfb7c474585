"""Reconcile: what waits without a worker is found again. Beat calls it, and every worker at its start."""

from __future__ import annotations

from haulier.services.chain import sweep
from tasks.celery import app
from tasks.surroundings import context


@app.task(name="haulier.reconcile")
def reconcile() -> None:
    """Nudge steps whose message was lost, and decide those whose worker died."""
    sweep(context())
