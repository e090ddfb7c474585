"""An evacuation is looked at: one of its migrations has ended, or somebody asked for it. Windows begin and end, and
alerts are acted on.
"""

from __future__ import annotations

from functools import lru_cache

from haulier.services.alert_actions import act_on_all
from haulier.services.evacuation_steps import go_on
from haulier.services.windows import sweep_windows
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


_windows = Coalesced(lambda: sweep_windows(context()))


@app.task(name="haulier.windows")
def windows(number: int) -> None:
    """The time of a window has come, or is over."""
    del number
    _windows()


@lru_cache
def _act(*, held_too: bool) -> Coalesced:
    """Each delivery asks for it, and each beat, while one node after the other is planned."""
    return Coalesced(lambda: act_on_all(context(), held_too=held_too))


@app.task(name="haulier.alerts")
def alerts(held_too: int) -> None:
    """Alerts were received; or (1) it is time to ask again for those that were refused."""
    _act(held_too=bool(held_too))()
