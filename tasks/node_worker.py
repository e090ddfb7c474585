"""A node's worker says that it lives, and looks at its host.

Celery calls `_begin` when a worker is ready and `_end` when it stops in good order. A worker without HAULIER_NODE is a
control worker: it only reconciles.
"""

from __future__ import annotations

import gc
import threading
from typing import Any

import structlog
from celery.signals import setup_logging, worker_init, worker_ready, worker_shutting_down

from haulier.errors import StepFailed
from haulier.hypervisor import facts
from haulier.hypervisor.processes import hold
from haulier.logs import configure_logs
from haulier.services.nodes import beat, leave, register_node
from haulier.services.operations import take_back_operations
from haulier.services.recovery import take_back
from tasks.host_watch import HostWatch
from tasks.orphans import collect_orphans
from tasks.quarantine import destroy_expired
from tasks.reconcile import reconcile
from tasks.storage_rooms import StorageRooms
from tasks.surroundings import context, this_node

log = structlog.get_logger()
_ending = threading.Event()
_node_id: list[int] = []


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
    this_node().layout.forget_digests()
    take_back(context(), f"node.{settings.node}")
    take_back_operations(context(), settings.node)


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
    threading.Thread(target=_live, args=(node_id, found), name="heartbeat", daemon=True).start()
    log.info("node.ready", node=settings.node, **{k: v for k, v in found.items() if k != "machines"})
    reconcile.delay()


@worker_shutting_down.connect
def _end(**_: Any) -> None:  # noqa: ANN401
    _ending.set()
    if _node_id:
        leave(context(), _node_id[0])


def _live(node_id: int, found: dict[str, Any]) -> None:
    """Beat until the worker ends; a database that is away for a moment ends nothing."""
    watch = HostWatch(context(), node_id, this_node().layout)
    rooms = StorageRooms(context(), node_id)
    while not _ending.wait(context().settings.heartbeat_s):
        try:
            seen = {"storage_free_bytes": rooms.now(), "guest_ram_bytes": watch.guest_ram_bytes}
            beat(context(), node_id, {**found, **facts.memory(), **seen})
            watch.look()
            collect_orphans(context(), node_id)
            destroy_expired(context(), node_id, quarantine=this_node().layout.quarantine)
        except Exception:
            log.exception("heartbeat.failed")
