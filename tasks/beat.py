"""Beat, whose clock may be put back: Celery's own would send nothing then until the old time has come again."""

from __future__ import annotations

from typing import Any

from celery.beat import ScheduleEntry, Scheduler


class SteadyScheduler(Scheduler):
    """Takes what was sent in a time that is yet to come as sent now. Keeps no file: all it sends may come again."""

    def is_due(self, entry: ScheduleEntry) -> Any:  # noqa: ANN401 - Celery's own pair, or a named tuple of it
        """Whether it is to be sent now, and in how many seconds to ask again."""
        moment = entry.default_now()
        if entry.last_run_at is None or entry.last_run_at > moment:
            entry.last_run_at = moment
        return super().is_due(entry)
