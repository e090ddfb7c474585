"""Reconcile: what waits without a worker is found again. Beat calls it, and every worker at its start."""

from __future__ import annotations

from haulier.clock import Pace
from haulier.services import admission
from haulier.services.alert_actions import ask_for_alerts
from haulier.services.bandwidth import divide_anew
from haulier.services.consent import follow_consents
from haulier.services.evacuation_steps import sweep_evacuations
from haulier.services.operations import sweep_operations
from haulier.services.put_off import mend_put_off
from haulier.services.recovery import sweep
from haulier.services.replications import sweep_replications
from haulier.services.roll_steps import sweep_rolls
from haulier.services.waiting import make_room
from haulier.services.windows import ask_for_windows
from tasks.celery import app
from tasks.coalescing import Coalesced
from tasks.surroundings import context

# Room is seldom made from one moment to the next.
_held = Pace(30.0)
_settling = Pace(admission.SETTLE_EVERY_S)
# Each end of a migration asks for it; its transactions exclude each other, and would keep all threads waiting.
_admit = Coalesced(lambda: admission.admit(context(), settling=_settling))


def _look_after_all() -> None:
    sweep(context())
    sweep_operations(context())
    mend_put_off(context())
    sweep_replications(context())
    divide_anew(context())
    # By messages: to place VMs takes seconds, and here the dead are noticed.
    also_held = _held.is_due()
    sweep_evacuations(context(), blocked_too=also_held)
    follow_consents(context(), failed_too=also_held)
    ask_for_alerts(context(), held_too=also_held)
    sweep_rolls(context())
    ask_for_windows(context())
    # By a message too: where there is always room for one more it does not end for long.
    with context().unit() as unit:
        make_room(unit)


_look = Coalesced(_look_after_all)


@app.task(name="haulier.reconcile")
def reconcile() -> None:
    """Nudge what waits because its message was lost, decide what was left by a worker that died, file what is due."""
    _look()


@app.task(name="haulier.admit")
def admit(migration_id: int) -> None:
    """Somebody made room, or allowed more: begin who may begin of those that wait, of whom this is one."""
    del migration_id
    _admit()
