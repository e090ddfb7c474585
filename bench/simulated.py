"""A worker of the simulation: the product's tasks and everything they stand on, but their hosts are the fakes.

`celery -A bench.simulated worker` takes the messages of many nodes, `nodes.0` or `nodes.1` instead of `node.<name>`:
both hosts of a migration are played in one process. Each VM has its two hosts for itself, made when its first step
comes. QEMUs do at once what they would do by themselves, and no byte is carried, so that what is measured is Haulier.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, update

from haulier.clock import now
from haulier.errors import StepFailed
from haulier.fakes.calls import CALLS, FakeMonitor
from haulier.fakes.files import FakeFiles, FakePath, FakeVolume
from haulier.fakes.pair import FakePair
from haulier.fakes.places import places_of
from haulier.fakes.processes import FakeSwtpm
from haulier.fakes.qemu import FakeQemu, RunState
from haulier.hypervisor.layout import NodeLayout
from haulier.hypervisor.swtpm import SwtpmFacts
from haulier.services import loading
from haulier.services.attempts import AttemptView
from haulier.services.context import Message
from models import Node, Phase, Side, VolumeRole
from tasks import app, runner, surroundings
from tasks.surroundings import ThisNode

SHARDS = 2
# One in so many phases fails, by something that passes.
FAILURE_RATE = float(os.environ.get("HAULIER_SIMULATED_FAILURES", "0.02"))
# Where each process counts what it does to the database.
COUNTS = os.environ.get("HAULIER_SIMULATED_COUNTS")
IDENTITY = "1d" * 32
_HEARTBEAT_S = 2.0


def shard_of(node: str) -> int:
    """Which of the workers plays a node; both nodes of a migration must have the same."""
    return int(node.lstrip("n")) % SHARDS


def _queue_of(message: Message) -> Message:
    """The message as it goes to a worker of many nodes."""
    kind, _, node = message.queue.partition(".")
    return replace(message, queue=f"nodes.{shard_of(node)}") if kind == "node" else message


# -- hosts -------------------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Hosts:
    """The two hosts of one VM, and who may change them now."""

    pair: FakePair
    lock: threading.RLock = field(default_factory=threading.RLock)


_hosts: dict[int, Hosts] = {}
_current: ContextVar[Hosts] = ContextVar("hosts")


class _CurrentPair:
    """What the fakes take for the one pair that there is: that of the VM whose step this thread works at."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(_current.get().pair, name)


class _CurrentDisks:
    def __getitem__(self, host: str) -> FakeFiles:
        found: FakeFiles = _current.get().pair.disks[host]
        return found


def _make_hosts(view: AttemptView) -> Hosts:
    """The VM runs on its source, with what its volumes hold; the target is empty."""
    made = Hosts(FakePair({view.source.name: FakeFiles(), view.target.name: FakeFiles()}))
    token = _current.set(made)
    try:
        place = _layout(view.source.name).vm(view.vm)
        place.prepare()
        swtpm, disks = None, {}
        for volume in view.transfers:
            path, is_tpm = FakePath(volume.source_path), volume.role is VolumeRole.TPMSTATE
            contents = path.disk.contents[path] = FakeVolume(identity=IDENTITY if is_tpm else None)
            if is_tpm:
                swtpm = made.pair.add(FakeSwtpm(made.pair.next_pid(), place.swtpm.token, contents))
            else:
                disks[volume.device] = contents
        pid, export = made.pair.next_pid(), made.pair.export
        made.pair.add(FakeQemu(pid, place.qemu.token, disks, swtpm, RunState.RUNNING, export))
        place.note_epoch(view.epoch)
    finally:
        _current.reset(token)
    return made


def _layout(node: str) -> NodeLayout:
    root, sockets = FakePath(f"/{node}/root"), FakePath(f"/{node}/run")
    return NodeLayout(root, sockets)  # type: ignore[arg-type]  # it has of a Path what is asked of it


def _settle() -> None:
    """QEMUs do what they would do by themselves, now."""
    hosts = _current.get()
    hosts.pair.time = time.time()
    while moves := hosts.pair.moves():
        moves[0].make()


async def _execute_at_once(self: FakeMonitor, command: str, arguments: dict[str, Any], *, urgent: bool = False) -> Any:  # noqa: ANN401 - QMP answers have every shape
    """A monitor's command, after which its QEMU does not rest before there is nothing left to do."""
    hosts = _current.get()
    with hosts.lock:
        answer = await _execute(self, command, arguments, urgent=urgent)
        _settle()
    return answer


_execute = FakeMonitor.execute_raw


# -- what stands in the product's place --------------------------------------------------------------------------------


def _load_view(context: Any, attempt_id: int) -> AttemptView:  # noqa: ANN401
    view = _load(context, attempt_id)
    if view.target.name not in getattr(_hosts.get(view.vm_id), "pair", FakePair({})).disks:
        _hosts[view.vm_id] = _make_hosts(view)
    _current.set(_hosts[view.vm_id])
    return view


_load = loading.load_view


async def _with_failures(work: runner.StepRun, act: runner.Act) -> runner.Notes | None:
    claim = work.claim
    fails = random.Random(f"{claim.step_id}.{claim.fence}").random() < FAILURE_RATE  # noqa: S311 - no secret
    if fails and not claim.undo:
        raise StepFailed("qmp_silent", "this one was chosen to fail", "It is a simulation.")
    notes = await _act(work, act)
    # The control worker looks at no host: what it made to work at its step would stay for ever.
    if claim.phase is Phase.RETIRE_SOURCE or claim.side is Side.CONTROL:
        _hosts.pop(work.view.vm_id, None)
    return notes


_act = runner._from_point_to_point


def _node_of(work: runner.StepRun) -> ThisNode:
    side = work.view.target if work.claim.side is Side.TARGET else work.view.source
    return ThisNode(side.name, _layout(side.name))


class _NoTurns(runner.Turns):
    """A worker of one node works at one step of an attempt at a time; this one is the worker of both sides."""

    @contextmanager
    def taken(self, attempt_id: int, *, patience_s: float) -> Iterator[bool]:
        del attempt_id, patience_s
        yield True


def dispatch(message: Message) -> None:
    """Send a message to the worker of many nodes that plays its node."""
    _send(_queue_of(message))


_send = surroundings.dispatch


def _put_in_place() -> None:
    stands_for: dict[object, object] = {
        **CALLS,
        surroundings.this_swtpm: lambda: SwtpmFacts("swtpm", "0.7.1", "0.9.2", frozenset()),
        surroundings.dispatch: dispatch,
        _load: _load_view,
        runner._turns: _NoTurns(),
        runner._from_point_to_point: _with_failures,
    }
    for module, name, stand_in in places_of(stands_for):
        setattr(module, name, stand_in)
    FakePair.current, FakePath.disks = _CurrentPair(), _CurrentDisks()  # type: ignore[assignment]
    FakeMonitor.execute_raw = _execute_at_once  # type: ignore[method-assign]
    runner.StepRun.node = property(_node_of)  # type: ignore[assignment, method-assign]


# -- what is counted ---------------------------------------------------------------------------------------------------

counts: Counter[str] = Counter()


@event.listens_for(Engine, "after_cursor_execute")
def _executed(*_: object) -> None:
    counts["statements"] += 1


@event.listens_for(Engine, "commit")
def _committed(*_: object) -> None:
    counts["commits"] += 1


def _report() -> None:
    path = Path(str(COUNTS)) / f"{os.getpid()}.json"
    while True:
        time.sleep(0.5)
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(counts))
        unfinished.rename(path)


def _beat() -> None:
    """The nodes live: one statement for all of them, where each would have one of its own."""
    while True:
        with surroundings.context().database.write() as session:
            session.execute(update(Node).values(heartbeat_at=now()))
        time.sleep(_HEARTBEAT_S)


@app.task(name="bench.hop")
def hop(left: int, number: int) -> None:
    """Nothing but a hop: the next one of a chain is sent to the other worker's queue."""
    if left:
        hop.apply_async((left - 1, number + 1), queue=f"nodes.{number % SHARDS}")
    else:
        surroundings.context().signals.ring("bench.chain")


def _begin() -> Iterator[threading.Thread]:
    yield threading.Thread(target=_report, daemon=True)
    if os.environ.get("HAULIER_SIMULATED_BEATS"):
        yield threading.Thread(target=_beat, daemon=True)


if COUNTS:
    _put_in_place()
    for thread in _begin():
        thread.start()
