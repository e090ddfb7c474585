"""What a worker process has around it: settings, database, signals, its node's folders.

Made once a process, at first use.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass

from kombu.exceptions import OperationalError

from haulier.errors import Refused
from haulier.hypervisor.layout import NodeLayout, VmPlace, node_layout
from haulier.hypervisor.swtpm import SwtpmFacts, swtpm_facts
from haulier.services.context import Context, Message
from haulier.settings import Settings, load_settings
from haulier.signals import Signals
from models import Database
from tasks.celery import app


def dispatch(message: Message) -> None:
    """Send a message. A broker that is away is no error: the row is there, and `sweep` sends again."""
    with contextlib.suppress(OperationalError, OSError):
        app.send_task(message.task, args=(message.row,), queue=message.queue)


def control_answers() -> bool:
    """Whether a control worker is there, within half a second, and with it the broker."""
    try:
        return bool(app.control.ping(timeout=0.5, pattern="control@*", matcher="glob", limit=1))
    except (OperationalError, OSError):
        return False


def make_context(settings: Settings) -> Context:
    """The surroundings of a use-case for a process with these settings.

    Who asks a database which is just started again waits for it, each time for no longer than a guest may be paused.
    """
    database = Database(settings.database, patience_s=settings.pause_lease_s)
    return Context(settings, database, Signals(settings.broker), dispatch)


@functools.cache
def context() -> Context:
    """This process's own."""
    return make_context(load_settings())


@dataclass(frozen=True, slots=True)
class ThisNode:
    """The node whose worker this process is."""

    name: str
    layout: NodeLayout

    def place(self, vm: str) -> VmPlace:
        """The folders of a VM on this node, made if need be."""
        place = self.layout.vm(vm)
        place.prepare()
        return place


@functools.cache
def this_node() -> ThisNode:
    """Raises Refused in a process that is no node's worker."""
    settings = context().settings
    if settings.node is None:
        raise Refused("no_node", "this worker belongs to no node", "Set HAULIER_NODE.")
    layout = node_layout(settings.state, settings.sockets, settings.node)
    layout.prepare()
    return ThisNode(settings.node, layout)


@functools.cache
def this_swtpm() -> SwtpmFacts:
    """What the swtpm of this node is. Raises StepFailed when there is none."""
    return swtpm_facts(context().settings.swtpm)
