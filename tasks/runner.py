"""The shell around every phase: take the step, keep its lease while it works, write down how it ended.

A phase itself knows nothing of this. It is a coroutine that returns its notes or raises one of the errors of
haulier/errors.py; what becomes of the migration then is decided in haulier/services/chain.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from haulier.errors import HaulierError, NeedsOperator, Refused
from haulier.fault_points import fault_point
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.tls import KeyFolder, greeting_key
from haulier.services import chain, claims
from haulier.services.allocations import take_port
from haulier.services.attempts import AttemptView, NodeView, note_on_step
from haulier.services.context import Context
from haulier.services.defects import problems_of
from haulier.services.loading import load_view
from tasks.bandwidth import Allowance
from tasks.lease import Lease
from tasks.surroundings import ThisNode, context, this_node

log = structlog.get_logger()
# A database that is back tells nobody.
_TRY_AGAIN_S = 0.1

Notes = dict[str, Any]
Found = TypeVar("Found")
Act = Callable[["StepRun"], Coroutine[Any, Any, Notes | None]]


@dataclass(slots=True)
class StepRun:
    """One phase at work: the attempt as it was read at the start, and where to write down what happens meanwhile."""

    context: Context
    claim: claims.Claim
    view: AttemptView
    allowance: Allowance
    progress: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)

    @property
    def node(self) -> ThisNode:
        return this_node()

    @property
    def place(self) -> VmPlace:
        """The VM's folders on this node."""
        return self.node.place(self.view.vm)

    @property
    def tls(self) -> bool:
        return self.context.settings.tls

    def keys(self) -> KeyFolder | None:
        """This attempt's key in its folder on this node; None when TLS is switched off."""
        if not self.tls:
            return None
        keys = KeyFolder(self.place.keys(self.view.key))
        keys.write(self.context.settings.cluster_secret, self.view.key)
        return keys

    def greeting_key(self) -> bytes | None:
        """The key by which the workers of both nodes know each other on the stream's port; None without TLS."""
        return greeting_key(self.context.settings.cluster_secret, self.view.key) if self.tls else None

    def mark(self, name: str) -> None:
        """Note a moment inside the pause."""
        self.marks[name] = time.time()

    def note(self, **notes: object) -> None:
        """Write something down before the step ends."""
        note_on_step(self.context, self.claim, **notes)

    def meter(self, device: str, total: int) -> Callable[[int], None]:
        """What a volume's copy reports to: bytes so far, of `total`. It may read a little more than that."""

        def report(done: int) -> None:
            self.progress[device] = {"bytes": min(done, total), "bytes_total": total}

        return report

    def lease(self) -> Lease:
        """What keeps the step ours while it works."""
        return Lease(self.context, self.claim, self.allowance, self.progress, self.marks, self.view.stall_s)

    def listen_on(self, node: NodeView, purpose: str, *, avoid: frozenset[int] = frozenset()) -> NbdServer:
        """A port of this node that no other migration has."""
        port = take_port(self.context, self.view.attempt_id, node, purpose, avoid=avoid)
        return NbdServer(node.address, port)


class Turns:
    """Of one attempt only one step at a time is worked at in this process, which is its node's only worker.

    A step may have lost its lease without knowing: its thread was in code that awaits nothing, or the whole worker was
    frozen, and it goes on until it awaits again. An undo that ran beside it would leave what it makes meanwhile.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: weakref.WeakValueDictionary[int, threading.Lock] = weakref.WeakValueDictionary()

    @contextlib.contextmanager
    def taken(self, attempt_id: int, *, patience_s: float) -> Iterator[bool]:
        """Wait for the attempt's turn; False if it did not come in time."""
        with self._guard:
            turn = self._locks.setdefault(attempt_id, threading.Lock())
        if not turn.acquire(timeout=patience_s):
            yield False
            return
        try:
            yield True
        finally:
            turn.release()


_turns = Turns()


def execute(step_id: int, *, run: Act, undo: Act | None = None) -> None:
    """Do the work that the step's row asks for: run it or undo it.

    A doubled message finds nothing to take and goes away. So does one whose attempt is still worked at here: nothing
    was taken for it, and `sweep` sends it again.
    """
    around = context()
    attempt_id = claims.attempt_of(around, step_id)
    with _turns.taken(attempt_id, patience_s=around.settings.reconcile_s) as ours:
        if ours:
            _execute(around, step_id, run=run, undo=undo)


def _execute(around: Context, step_id: int, *, run: Act, undo: Act | None) -> None:
    held = claims.claim(around, step_id, worker=socket.gethostname(), lease_s=around.settings.lease_s)
    if held is None:
        return
    act = run if not held.undo else undo
    bound = log.bind(action=held.phase, side=held.side, migration=held.migration_id, undo=held.undo)
    bound.info("step.begin")
    allowance, done = Allowance(around, held), False
    try:
        work = StepRun(around, held, load_view(around, held.attempt_id), allowance)
        notes = asyncio.run(work.lease().hold_for(_from_point_to_point(work, act))) if act else None
    except HaulierError as error:
        bound.warning("step.failed", code=error.code, message=error.problem.message)
        chain.fail(around, held, problems_of(error), outcome=_outcome_of(error))
    except Exception as error:  # noqa: BLE001 - the task's boundary: whatever it is, the row must say so
        bound.exception("step.broken")
        chain.fail(around, held, problems_of(error))
    else:
        if held.undo:
            chain.complete_undo(around, held)
        else:
            done = chain.complete(around, held, notes=notes or {}, marks=work.marks)
        bound.info("step.end")
    allowance.end(done=done)


def _outcome_of(error: HaulierError) -> chain.Outcome:
    if isinstance(error, Refused):
        return chain.Outcome.REFUSED
    return chain.Outcome.NEEDS_OPERATOR if isinstance(error, NeedsOperator) else chain.Outcome.FAILED


async def _from_point_to_point(work: StepRun, act: Act) -> Notes | None:
    name = f"{work.claim.phase}.{'undo' if work.claim.undo else 'run'}"
    await fault_point(f"{name}.begins")
    notes = await act(work)
    await fault_point(f"{name}.ends")
    return notes


async def patiently(work: StepRun, ask: Callable[[], Found], *, tried: str) -> Found:
    """Ask the database something in the pause. One that is away for a moment ends nothing as long as the lease lasts.

    A try that failed is marked as `tried`; what became of it is unknown.
    """
    while True:
        try:
            with work.context.database.at_once():
                return ask()
        except SQLAlchemyError:
            work.mark(tried)
            await asyncio.sleep(_TRY_AGAIN_S)


def reporting(
    report: Callable[[], Awaitable[None]], *, every_s: float = 0.5
) -> contextlib.AbstractAsyncContextManager[None]:
    """Call `report` now and then while the block works: for people, nothing waits for it."""

    async def loop() -> None:
        while True:
            with contextlib.suppress(HaulierError):
                await report()
            await asyncio.sleep(every_s)

    return beside(loop())


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do `work` while the block works; it ends with the block, wherever it is."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
