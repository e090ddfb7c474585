"""A node's worker is two processes: one that works, and its guardian, which has loaded the same and begins it anew.

A guest may stand still that only this node's worker can let run again, and loading all of it takes longer than the
guest's pause may. A process that is forked has everything already. The guardian itself does nothing: it opens neither
database nor broker, starts no thread, and passes on the signals that it is sent. If it is killed, the kernel ends the
one that works with it, and a supervisor has to begin both.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import time
from typing import Any

import structlog
from celery.signals import celeryd_init

from haulier.logs import configure_logs
from haulier.settings import load_settings

log = structlog.get_logger()
# One that lives for less will not live the next time either; the supervisor knows how to wait.
_AT_LEAST_S = 3.0
_AWAITED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


@celeryd_init.connect
def _guard(**_: Any) -> None:  # noqa: ANN401 - Celery's signals pass what they like
    """Called by Celery when all modules are loaded and nothing has begun."""
    if load_settings().node is not None:
        configure_logs()
        # What both have stays shared as long as nobody writes to it, and a collection would.
        gc.freeze()
        begin_working()


def begin_working() -> None:
    """Fork. Returns in the process that works; the guardian leaves with its exit status once that has ended by itself.

    One that was killed is begun anew, unless it had only just begun.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    while True:
        began = time.monotonic()
        guardian, worker = os.getpid(), os.fork()
        if worker == 0:
            _end_with(guardian)
            return
        status = _wait_for(worker)
        if not os.WIFSIGNALED(status) or time.monotonic() - began < _AT_LEAST_S:
            # As shells tell it: 128 and the signal's number.
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        log.error("worker.killed", pid=worker, signal=os.WTERMSIG(status))


def _end_with(guardian: int) -> None:
    # In a terminal Ctrl-C is for the whole group, and Celery takes a second one for impatience.
    os.setpgrp()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
    # It may have died before it was asked for.
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != guardian:
        os._exit(1)


def _wait_for(worker: int) -> int:
    """Its status when it has ended; signals that we are sent meanwhile are for it."""
    while True:
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            return status
        # Blocked since before the fork, none can come between two lines of this.
        if (number := signal.sigwait(_AWAITED)) != signal.SIGCHLD:
            os.kill(worker, number)
