"""Two nodes and a control worker that run the real tasks on fake hosts, and a broker that delivers when it is told to.

Everything of the product is real but for haulier/hypervisor's last step to a host (haulier/fakes), the clock, Redis and
Celery's delivery. The database is SQLite in memory. `Model` can be put back to a `Snapshot`, so that a run need not
walk the whole chain to come to the switch-over.
"""

from __future__ import annotations

import copy
import importlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError

from haulier.clock import now
from haulier.fakes.effects import effect
from haulier.fakes.files import FakeFiles, FakePath, FakeVolume
from haulier.fakes.pair import FakePair, Move
from haulier.fakes.processes import FakeSwtpm
from haulier.fakes.qemu import FakeQemu, RunState
from haulier.hypervisor.layout import NodeLayout
from haulier.services.context import Context, Message
from haulier.services.migrations import retry_migration
from haulier.services.nodes import beat
from haulier.services.recovery import take_back
from haulier.services.sightings import Sightings
from haulier.settings import Settings
from models import Node, Phase, Vm, VmState
from tasks.host_watch import HostWatch
from tasks.orphans import collect_orphans
from tasks.quarantine import destroy_expired
from tasks.reconcile import reconcile
from tasks.surroundings import ThisNode
from tests.model.stand_ins import Nudges, Process, ToldDatabase
from tests.model.strands import Clock, Strand
from tests.unit.services.world import IDENTITY, NO_BROKER, SOURCE, TARGET, World

DISK, TPM, CLOUDINIT = "scsi0", "tpmstate0", "ide2"
NODES = (SOURCE, TARGET)
QUEUES = ("control", *(f"node.{name}" for name in NODES))
# Celery's tasks by their names; a message has no other.
TASKS: dict[str, Callable[[int], None]] = {
    f"haulier.{phase}": getattr(importlib.import_module(f"tasks.{phase}"), phase) for phase in Phase
}
FIRST_PID = 7
ENDS = ("done", "undone", "refused", "cancelled")
LEASE_S, SILENT_S = 6.0, 5.0
_MACHINE = {"machine": "pc-i440fx-7.2", "cpu": "qemu64", "accel": "tcg", "ram_kib": 262152, "qemu_version": "7.2.0"}
_FACTS = {
    "qemu_version": "7.2.0", "accel": "tcg", "machines": {"pc": "pc-i440fx-7.2", "pc-i440fx-7.2": "pc-i440fx-7.2"},
    "swtpm_version": "0.7.1", "libtpms_version": "0.9.2", "swtpm_too_old": False,
}  # fmt: skip


@dataclass(eq=False)
class Worker:
    """The one worker of a queue. `begun`: it takes messages."""

    queue: str
    process: Process
    alive: bool = True
    begun: bool = True
    frozen: bool = False
    strands: list[Strand] = field(default_factory=list)

    @property
    def is_down(self) -> bool:
        return not self.alive and not self.strands

    @property
    def takes(self) -> bool:
        return self.alive and self.begun and not self.frozen

    def again(self) -> Process:
        """The process that its supervisor begins."""
        self.process = Process(self.process.context, self.process.node)
        return self.process


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All there is at a moment when no worker has anything in hand."""

    rows: sqlite3.Connection
    pair: FakePair
    sent: tuple[Message, ...]
    time: float


# By the phase that comes next, and whether the guest is paused.
Beginnings = dict[tuple[Phase, bool], Snapshot]


def running_pair() -> FakePair:
    """The VM `web` runs on alpha; nothing of it is on beta."""
    pair = FakePair({name: FakeFiles() for name in NODES})
    pair.use()
    place = _layout(SOURCE).vm("web")
    place.prepare()
    images = FakePath(f"/{SOURCE}/images/web")
    disk, seed, tpm = FakeVolume(), FakeVolume(written=1), FakeVolume(identity=IDENTITY)
    pair.disks[SOURCE].contents |= {images / "disk.qcow2": disk, images / "ci.raw": seed, images / "tpm.raw": tpm}
    swtpm = pair.add(FakeSwtpm(pair.next_pid(), place.swtpm.token, tpm))
    pair.add(FakeQemu(FIRST_PID, place.qemu.token, {DISK: disk, CLOUDINIT: seed}, swtpm, RunState.RUNNING, pair.export))
    place.note_epoch(0)
    return pair


def _layout(node: str) -> NodeLayout:
    root, sockets = FakePath(f"/{node}/root"), FakePath(f"/{node}/run")
    return NodeLayout(root, sockets)  # type: ignore[arg-type]  # it has of a Path what is asked of it


class Model:
    """The world, the two hosts and three workers."""

    def __init__(self, template: Path, state: Path, clock: Clock) -> None:
        self.clock = clock
        self.database = ToldDatabase()
        with closing(sqlite3.connect(template)) as rows:
            rows.backup(self.database.raw)
        secret = state / "secret"
        secret.write_text("s" * 32)
        secret.chmod(0o600)
        self.sent: list[Message] = []
        self.nudges = Nudges()
        self.settings = Settings(
            state=state, database_url="sqlite://", broker_url=NO_BROKER, secret_file=secret, lease_s=LEASE_S,
            pause_lease_s=LEASE_S / 2, reconcile_s=2.0, node_silent_after_s=SILENT_S, stall_timeout_s=8.0,
            tpm_quarantine_s=4.0,
        )  # fmt: skip
        self.context = Context(self.settings, self.database, self.nudges, self._send)
        self.world = World(self.context, self.sent)
        self.after_effect: Callable[[], None] = lambda: None
        self.begin_from(running_pair())
        self.world.change(Node, facts=_FACTS, heartbeat_at=now())
        self.world.change(Vm, pinned=_MACHINE)

    def close(self) -> None:
        self.end_all()
        self.database.close()

    def _send(self, message: Message) -> None:
        effect()
        self.sent.append(message)

    def begin_from(self, pair: FakePair) -> None:
        self.pair = pair
        pair.use()
        self.workers = {queue: self._worker(queue) for queue in QUEUES}
        self.seen: list[Message] = []
        self.nudges.bells.clear()
        self.nudges.are_lost = self.database.is_away = False

    def _worker(self, queue: str) -> Worker:
        name = queue.removeprefix("node.")
        node = ThisNode(name, _layout(name)) if name in NODES else None
        # A process has its own eyes.
        return Worker(queue, Process(replace(self.context, sightings=Sightings()), node))

    def snapshot(self) -> Snapshot:
        assert not self.strands
        rows = sqlite3.connect(":memory:", check_same_thread=False)
        self.database.raw.backup(rows)
        return Snapshot(rows, copy.deepcopy(self.pair), tuple(self.sent), self.clock.time)

    def restore(self, saved: Snapshot) -> None:
        self.end_all()
        self.database.raw.rollback()  # what a run that failed may have left open
        saved.rows.backup(self.database.raw)
        self.sent[:] = saved.sent
        self.clock.time = saved.time
        self.begin_from(copy.deepcopy(saved.pair))

    def end_all(self) -> None:
        for strand in self.strands:
            strand.kill()

    @property
    def changes(self) -> int:
        """Grows with every change of a row."""
        return self.database.raw.total_changes

    def ask(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """Ask the rows themselves, past everything of the product."""
        return self.database.raw.execute(query, values).fetchall()

    # -- messages -----------------------------------------------------------------------------------------------------

    @property
    def deliverable(self) -> list[Message]:
        return [message for message in self.sent if self.workers[message.queue].takes]

    @property
    def seen_before(self) -> list[Message]:
        return [message for message in self.seen if self.workers[message.queue].takes]

    def deliver(self, message: Message) -> None:
        """A worker gets the message."""
        if message in self.sent:
            self.lose(message)
        self.start(self.workers[message.queue], str(message.task), lambda: TASKS[message.task](message.row))

    def lose(self, message: Message) -> None:
        self.sent.remove(message)
        self.seen.append(message)

    # -- workers ------------------------------------------------------------------------------------------------------

    @property
    def strands(self) -> list[Strand]:
        return [strand for worker in self.workers.values() for strand in worker.strands]

    @property
    def able(self) -> list[Strand]:
        """Those that can go on now."""
        awake = (worker for worker in self.workers.values() if not worker.frozen)
        return [each for worker in awake for each in worker.strands if not each.stalled and each.can_go_on]

    def effects(self) -> list[Move]:
        """The next effect of each of them."""
        return [Move(str(strand), partial(self.step, strand)) for strand in self.able]

    def start(self, worker: Worker, name: str, work: Callable[[], object]) -> Strand:
        def patient() -> None:
            try:
                work()
            except OperationalError:
                assert self.database.is_away  # Celery writes it into its log

        strand = Strand(name, patient, clock=self.clock, owner=worker.process)
        worker.strands.append(strand)
        return strand

    def step(self, strand: Strand) -> None:
        """Its next effect. No two come at the same moment."""
        self.clock.time += 0.001
        self.pair.time = self.clock.time
        try:
            strand.go_on()
        finally:
            for worker in self.workers.values():
                worker.strands = [each for each in worker.strands if not each.done]
        self.after_effect()

    def kill_worker(self, worker: Worker) -> None:
        """What it had in hand ends where it was; processes that it started go on."""
        worker.alive = worker.begun = worker.frozen = False
        for strand in worker.strands:
            strand.kill()
        worker.strands.clear()
        for qemu in self.pair.running(FakeQemu, worker.queue.removeprefix("node.")):
            # The kernel closes what a process had open: its monitor takes another client.
            qemu.client, qemu.tell = None, []
            qemu.client_left.ring()

    def start_worker(self, worker: Worker) -> None:
        """As tasks/node_worker.py does. One that fails here ends, and its supervisor begins it again."""
        process = worker.again()

        def begin() -> None:
            if process.node is not None:
                take_back(self.context, worker.queue)
            worker.alive = worker.begun = True
            if process.node is not None:
                beat(self.context, QUEUES.index(worker.queue))
            reconcile()

        self.start(worker, f"begin {worker.queue}", begin)

    def look_at_host(self, worker: Worker) -> None:
        """What a node's worker does with its heartbeat."""
        if not worker.takes or worker.process.node is None:
            return
        node_id, layout = QUEUES.index(worker.queue), worker.process.node.layout

        def live() -> None:
            HostWatch(self.context, node_id, layout).look()
            collect_orphans(self.context, node_id)
            destroy_expired(self.context, node_id, quarantine=layout.quarantine)

        self.start(worker, f"heartbeat {worker.queue}", live)

    def reconcile(self) -> None:
        """What beat asks the control worker for."""
        if self.workers["control"].takes:
            self.start(self.workers["control"], "reconcile", reconcile)

    # -- hosts --------------------------------------------------------------------------------------------------------

    def kill_processes(self, node: str, kind: type[FakeQemu | FakeSwtpm]) -> None:
        for process in self.pair.running(kind, node):
            process.kill()

    def pause_guest(self) -> None:
        """The guest was paused by hand before the migration was filed."""
        self.pair.running(FakeQemu, SOURCE)[0].run_state = RunState.PAUSED
        self.world.change(Vm, state=VmState.PAUSED, run_state="paused")

    # -- order --------------------------------------------------------------------------------------------------------

    def work(self) -> bool:
        """Hosts and strands do what there is to do. False if there was nothing."""
        busy = False
        while moves := [*self.pair.moves(), *self.effects()]:
            busy = True
            moves[0].make()
        return busy

    def advance(self) -> bool:
        """The same, and all messages are delivered."""
        busy = self.work()
        while messages := self.deliverable:
            busy = True
            self.deliver(messages[0])
            self.work()
        return busy

    def let_time_pass(self, seconds: float) -> None:
        """Whoever waits for a moment goes on when it has come; heartbeats go on."""
        end = self.clock.time + seconds
        while self.clock.time < end:
            self.clock.time = min(end, self.clock.time + 1.0)
            if beating := [name for name in NODES if self.workers[f"node.{name}"].takes and not self.database.is_away]:
                self.world.change(Node, Node.name.in_(beating), heartbeat_at=now())
            for strand in [each for each in self.able if each.waits_for]:
                while not strand.done and strand.can_go_on:
                    self.step(strand)


def walk(model: Model) -> Iterator[tuple[Phase, Snapshot]]:
    """Nothing goes wrong; at the beginning of each phase a snapshot, where nobody has anything in hand."""
    seen = set()
    while model.sent:
        phase = Phase(model.sent[0].task.removeprefix("haulier."))
        if not model.strands and phase not in seen:
            seen.add(phase)
            yield phase, model.snapshot()
        model.deliver(model.sent[0])
        model.work()
        if not model.sent and model.strands:
            model.let_time_pass(1.0)
            model.work()


def settle(model: Model, *, rounds: int = 90) -> None:
    """The disorder ends: workers begin again, what stalled goes on, a second passes with each round."""
    model.database.is_away = False
    for worker in model.workers.values():
        worker.frozen = False
        if not worker.alive:
            model.kill_worker(worker)
            model.start_worker(worker)
    for strand in model.strands:
        strand.stalled = False
    for number in range(rounds):
        model.advance()
        ((state, needs_operator),) = model.ask("SELECT state, needs_operator FROM migration")
        if not model.strands and not model.sent and state in ENDS:
            break
        if needs_operator:
            retry_migration(model.context, 1)
        model.let_time_pass(1.0)
        if number % 3 == 2:
            model.reconcile()
    for worker in model.workers.values():
        model.look_at_host(worker)
    model.advance()
