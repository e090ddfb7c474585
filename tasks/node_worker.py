"""A node's worker says that it lives, and notices guests whose QEMU has ended.

Celery calls `_begin` when a worker is ready and `_end` when it stops in good order. A worker without HAULIER_NODE is a
control worker: it only reconciles.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from typing import Any

import structlog
from celery.signals import setup_logging, worker_init, worker_ready, worker_shutting_down

from haulier.errors import HaulierError, StepFailed
from haulier.hypervisor import facts
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.machine import status
from haulier.hypervisor.monitor import open_monitor
from haulier.hypervisor.processes import hold
from haulier.hypervisor.swtpm import stop_swtpm
from haulier.logs import configure_logs
from haulier.services.chain import take_back
from haulier.services.nodes import beat, leave, register_node
from haulier.services.vm_rows import VmView, record_observed, vms_that_should_run
from models import VmState
from tasks.quarantine import destroy_expired
from tasks.reconcile import reconcile
from tasks.surroundings import context, this_node

log = structlog.get_logger()
_ending = threading.Event()
_node_id: list[int] = []
_LOOK_S = 1.0


@setup_logging.connect
def _logs(**_: Any) -> None:  # noqa: ANN401 - Celery's signals pass what they like
    configure_logs()


@worker_init.connect
def _take_back(**_: Any) -> None:  # noqa: ANN401
    """Before the first message: there is one worker a node, so what an earlier one had in hand has lost it."""
    settings = context().settings
    if settings.node is None:
        return
    try:
        hold(this_node().layout.lock)
    except StepFailed as error:
        log.error("node.taken", message=error.problem.message, hint=error.problem.hint)  # noqa: TRY400 - no traceback
        raise SystemExit(2) from error
    take_back(context(), f"node.{settings.node}")


@worker_ready.connect
def _begin(**_: Any) -> None:  # noqa: ANN401
    # What is loaded by now stays: a full collection of it takes 30 ms, and one inside a guest's pause makes it longer.
    gc.collect()
    gc.freeze()
    settings = context().settings
    if settings.node is None:
        reconcile.delay()
        return
    found = facts.node_facts(qemu=settings.qemu, swtpm=settings.swtpm, accel=settings.accel)
    node_id = register_node(context(), settings.node, facts=found, images=this_node().layout.images)
    _node_id.append(node_id)
    threading.Thread(target=_live, args=(node_id,), name="heartbeat", daemon=True).start()
    log.info("node.ready", node=settings.node, **{k: v for k, v in found.items() if k != "machines"})
    reconcile.delay()


@worker_shutting_down.connect
def _end(**_: Any) -> None:  # noqa: ANN401
    _ending.set()
    if _node_id:
        leave(context(), _node_id[0])


def _live(node_id: int) -> None:
    """Beat until the worker ends; a database that is away for a moment ends nothing."""
    while not _ending.wait(context().settings.heartbeat_s):
        try:
            beat(context(), node_id, **facts.memory())
            _look_after_guests(node_id)
            destroy_expired(context(), node_id, quarantine=this_node().layout.quarantine)
        except Exception:
            log.exception("heartbeat.failed")


def _note_pause(vm: VmView, place: VmPlace) -> None:
    """Somebody may have paused or continued the guest by its own monitor, or QEMU after an error; the row follows."""
    with contextlib.suppress(HaulierError, TimeoutError):
        word = asyncio.run(_status(place))
        state, run_state = (VmState.RUNNING, None) if word == "running" else (VmState.PAUSED, word)
        if (state, run_state) != (vm.state, vm.run_state):
            record_observed(context(), vm, state, run_state=run_state)


async def _status(place: VmPlace) -> str:
    # A QEMU that hangs must not make its whole node look silent.
    async with asyncio.timeout(_LOOK_S), open_monitor(place.control) as monitor:
        return await status(monitor)


def _look_after_guests(node_id: int) -> None:
    """A QEMU that ended by itself was powered off by its guest; one that left its pid file behind was killed."""
    for vm in vms_that_should_run(context(), node_id):
        place = this_node().layout.vm(vm.name)
        if place.qemu.pid() is not None:
            _note_pause(vm, place)
            continue
        state = VmState.STOPPED if place.qemu.ended_by_itself() else VmState.LOST
        if not record_observed(context(), vm, state, pid=None, qmp=None, run_state=None):
            continue
        stop_swtpm(place)
        place.clear()
        log.warning("vm.ended", vm=vm.name, state=state)
