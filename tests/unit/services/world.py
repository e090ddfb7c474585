"""A small world for tests of the services: two nodes, VMs with a disk and a TPM, and workers played by the test.

Messages go into a list instead of a broker. The test takes them out and says what became of each step, so that every
order of events can be played. `picture` shows an attempt's eleven steps with a letter each, in the order of the chain.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import event, func, select, update

from haulier.clock import now
from haulier.definition import Role, VmDefinition, VolumeSpec
from haulier.errors import Problem
from haulier.services import chain, claims, recovery
from haulier.services.attempts import AttemptView
from haulier.services.context import Context, Message
from haulier.services.filing import Terms
from haulier.services.ledger import TpmCopy, reserve_copy
from haulier.services.loading import load_view
from haulier.services.migrations import file_migration, show_migration
from haulier.services.operations import sweep_operations
from haulier.services.ownership import HandOver, NewHome
from haulier.services.sightings import Sightings
from haulier.settings import Settings
from haulier.signals import Signals
from models import (
    LIVE_CHAIN,
    Attempt,
    Database,
    Event,
    LedgerRole,
    Migration,
    Node,
    Phase,
    Replica,
    Replication,
    Side,
    Step,
    StepState,
    Storage,
    TpmLedger,
    Vm,
    VmState,
    Volume,
    VolumeRole,
)

LETTERS = dict(zip(StepState, ".rRdfuUx", strict=True))
SOURCE, TARGET = "alpha", "beta"
IDENTITY, DIGEST = "1d" * 32, "d1" * 32
# Everything that a failure before the hand-over undoes, in the order of the chain.
UNDOABLE: tuple[Phase, ...] = tuple(rule.phase for rule in LIVE_CHAIN if rule.phase is not Phase.CHECK)[:-1]
# What earlier phases write down for later ones.
NOTES: dict[tuple[Phase, Side], dict[str, Any]] = {(Phase.CHECK, Side.SOURCE): {"file_bytes": {"ide2": 1 << 20}}}
LEASE_S = 600.0
BROKEN = Problem("broken", "it broke", "Mend it.")
# Who holds move_memory and hand_over.
Halves = tuple[claims.Claim, claims.Claim]
# Nobody listens there: wake-up calls are lost, and must not be missed.
NO_BROKER = "redis+socket:///nonexistent/broker.sock"
LONG_AGO = timedelta(days=1)


def make_settings(state: Path, url: str, **changes: Any) -> Settings:
    """Settings under which nothing happens by itself while a test thinks."""
    usual: dict[str, Any] = {"node_silent_after_s": 3600.0, "lease_s": LEASE_S, "reconcile_s": 3600.0}
    return Settings(state=state, database_url=url, broker_url=NO_BROKER, **(usual | changes))


@dataclass
class World:
    """A context whose dispatch is a list, and the moves that workers and time can make; its steady clock stands."""

    context: Context
    sent: list[Message] = field(default_factory=list)
    steady: list[float] = field(default_factory=lambda: [0.0])

    # -- what there is ------------------------------------------------------------------------------------------------

    def populate(self) -> None:
        """Nodes alpha and beta, each with a storage `local`."""
        with self.context.database.write() as session:
            for number, name in enumerate((SOURCE, TARGET)):
                first = 61000 + 1000 * number
                node = Node(
                    name=name, address=f"10.0.0.{number}", port_first=first, port_last=first + 999, heartbeat_at=now(),
                    facts={"swtpm_version": "0.7.1", "libtpms_version": "0.9.2"},
                )  # fmt: skip
                node.storages.append(Storage(name="local", kind="folder", path=f"/{name}/images"))
                session.add(node)

    def add_vm(self, name: str = "web", **changes: Any) -> int:
        """A running VM on alpha with a disk, a cloud-init image and a TPM; its id."""
        specs = (
            VolumeSpec("scsi0", Role.DISK, "local", f"{name}/disk.qcow2", format="qcow2", size_bytes=1 << 30),
            VolumeSpec("ide2", Role.CLOUDINIT, "local", f"{name}/ci.raw", size_bytes=1 << 20),
            VolumeSpec("tpmstate0", Role.TPMSTATE, "local", f"{name}/tpm.raw", size_bytes=4 << 20),
        )
        with self.context.database.write() as session:
            node = session.scalars(select(Node).where(Node.name == SOURCE)).one()
            definition = VmDefinition(name=name, tpm_version="v2.0", uuid="u", volumes=specs)
            usual: dict[str, Any] = {"state": VmState.RUNNING, "pid": 7, "qmp": "/q", "pinned": {"ram_kib": 262152}}
            vm = Vm(name=name, node=node, definition=definition.as_dict(), created_at=now(), **(usual | changes))
            for spec in specs:
                vm.volumes.append(
                    Volume(device=spec.device, role=VolumeRole(spec.role), storage=node.storages[0], name=spec.name,
                           format=spec.format, size_bytes=spec.size_bytes)
                )  # fmt: skip
            session.add(vm)
            session.add(
                TpmLedger(vm=vm, node=node, path=f"/{SOURCE}/images/{name}/tpm.raw", role=LedgerRole.ACTIVE, epoch=0,
                          identity=IDENTITY, digest="00" * 32, changed_at=now())
            )  # fmt: skip
            session.flush()
            return vm.id

    # -- what can be seen ---------------------------------------------------------------------------------------------

    def picture(self, attempt_id: int = 1) -> str:
        """The steps' states, a letter each."""
        with self.context.database.read() as session:
            rows = session.scalars(select(Step.state).where(Step.attempt_id == attempt_id).order_by(Step.position))
            return "".join(LETTERS[state] for state in rows)

    def state(self, migration_id: int = 1) -> str:
        with self.context.database.read() as session:
            return session.get_one(Migration, migration_id).state.value

    def shown(self, migration_id: int = 1) -> str:
        """The state that people are shown."""
        return str(show_migration(self.context, migration_id)["state"])

    def migration(self, migration_id: int = 1) -> Migration:
        with self.context.database.read() as session:
            return session.get_one(Migration, migration_id)

    def vm(self, name: str = "web") -> Vm:
        with self.context.database.read() as session:
            vm = session.scalars(select(Vm).where(Vm.name == name)).one()
            vm.node, vm.volumes  # noqa: B018 - loaded while the session lives
            return vm

    def step(self, phase: Phase, side: Side | None = None, attempt_id: int = 1) -> Step:
        with self.context.database.read() as session:
            rows = session.scalars(select(Step).where(Step.attempt_id == attempt_id, Step.phase == phase)).all()
            return next(row for row in rows if side in (None, row.side))

    def kinds(self, prefix: str = "migration.") -> list[str]:
        """The kinds of the events so far, those that begin with `prefix`."""
        with self.context.database.read() as session:
            found = session.scalars(select(Event.kind).order_by(Event.id)).all()
            return [kind.removeprefix(prefix) for kind in found if kind.startswith(prefix)]

    def ledger(self) -> list[tuple[str, str, int]]:
        """Each copy of a TPM: its node, its role, its epoch."""
        with self.context.database.read() as session:
            rows = session.scalars(select(TpmLedger).order_by(TpmLedger.id))
            return [(row.node.name, row.role.value, row.epoch) for row in rows]

    def count(self, table: type[Any]) -> int:
        with self.context.database.read() as session:
            return session.scalar(select(func.count()).select_from(table)) or 0

    def view(self, attempt_id: int = 1) -> AttemptView:
        return load_view(self.context, attempt_id)

    # -- what workers do ----------------------------------------------------------------------------------------------

    def file(self, vm: str = "web", *, offline: bool = False) -> int:
        """File a migration of the VM to beta."""
        return file_migration(self.context, vm, target=TARGET, terms=Terms(offline=offline))

    def claim(self, message: Message) -> claims.Claim | None:
        return claims.claim(self.context, message.row, worker="w", lease_s=LEASE_S)

    def take(self) -> claims.Claim:
        """The oldest message is delivered, and its step taken."""
        held = self.claim(self.sent.pop(0))
        assert held is not None
        return held

    def take_all(self) -> dict[Phase, claims.Claim]:
        """All messages are delivered, and their steps taken."""
        taken = [self.take() for _ in range(len(self.sent))]
        return {held.phase: held for held in taken}

    def commit(self, held: claims.Claim, view: AttemptView | None = None, **home: Any) -> bool:
        """The target takes the guest over."""
        change = self.hand_over(held, view, **{name: value for name, value in home.items() if name != "digest"})
        return change.commit(home.get("digest", DIGEST))

    def hand_over(self, held: claims.Claim, view: AttemptView | None = None, **home: Any) -> HandOver:
        """The change of owner, made ready."""
        usual: dict[str, Any] = {"pid": 8, "qmp": "/q2"}
        return HandOver(self.context, held, view or self.view(held.attempt_id), NewHome(**(usual | home)))

    def complete(self, held: claims.Claim) -> bool:
        """The step is done, and if it is the hand-over, the guest was taken."""
        if held.phase is Phase.HAND_OVER:
            assert self.commit(held)
        return chain.complete(self.context, held, notes=NOTES.get((held.phase, held.side), {}))

    def fail(self, held: claims.Claim, *, outcome: chain.Outcome = chain.Outcome.FAILED) -> None:
        chain.fail(self.context, held, (BROKEN,), outcome=outcome)

    def go(self, phase: Phase, side: Side | None = None) -> claims.Claim:
        """Everything before this step is done, and it is taken."""
        while True:
            held = self.take()
            if held.phase is Phase.HAND_OVER and phase is not Phase.HAND_OVER:
                assert chain.stand_by(self.context, held)
                if phase is Phase.MOVE_MEMORY:
                    return self.take()
                assert self.complete(self.take())
            elif held.phase is phase and side in (None, held.side):
                return held
            assert self.complete(held)

    def switch_over(self) -> Halves:
        """Both halves of the switch-over are at work: move_memory and hand_over."""
        self.complete(self.go(Phase.MIRROR_DISKS))
        hand = self.take_all()[Phase.HAND_OVER]
        assert chain.stand_by(self.context, hand)
        return self.take_all()[Phase.MOVE_MEMORY], hand

    def add_replica(self, node: str, name: str, *, vm_id: int = 1) -> None:
        """A replica of a VM's first volume on a node, as a replication has left it."""
        with self.context.database.write() as session:
            storage = session.scalars(select(Storage).where(Storage.path == f"/{node}/images")).one()
            replication = Replication(vm_id=vm_id, target_id=storage.node_id, generation=1, created_at=now())
            session.add(replication)
            session.flush()
            volume = session.scalars(select(Volume.id).where(Volume.vm_id == vm_id).order_by(Volume.id)).first()
            place = {"replication_id": replication.id, "volume_id": volume, "storage_id": storage.id, "name": name}
            session.add(Replica(**place, generation=1, synced_at=now()))

    def reserve_tpm(self, view: AttemptView) -> None:
        """What the phase reserve writes into the ledger."""
        assert view.tpm
        reserve_copy(self.context, TpmCopy(view.vm_id, view.target.id, view.tpm.target_path), epoch=view.epoch + 1)

    def undo_all(self) -> list[Phase]:
        """Every undo that is asked for succeeds; the phases in the order in which they were undone."""
        order = []
        while self.sent:
            held = self.take()
            assert held.undo
            chain.complete_undo(self.context, held)
            order.append(held.phase)
        return order

    # -- what time does -----------------------------------------------------------------------------------------------

    def change(self, table: type[Any], *where: Any, **values: Any) -> None:
        with self.context.database.write() as session:
            session.execute(update(table).where(*where).values(**values))

    def let_lease_end(self, held: claims.Claim) -> None:
        self.change(Step, Step.id == held.step_id, lease_s=0)

    def let_lease_end_of(self, phase: Phase) -> None:
        self.change(Step, Step.phase == phase, Step.lease_until.is_not(None), lease_s=0)

    def let_time_pass(self) -> None:
        """Every message that was sent is old, no lease has ended."""
        self.change(Step, Step.ready_at.is_not(None), ready_at=now() - LONG_AGO)

    def pass_steadily(self, seconds: float) -> None:
        """So long passes, whatever the time of day does meanwhile."""
        self.steady[0] += seconds

    def silence(self, node: str) -> None:
        self.change(Node, Node.name == node, heartbeat_at=None)

    def sweep(self) -> None:
        recovery.sweep(self.context)
        sweep_operations(self.context)

    def settle(self, *, rounds: int = 80) -> None:
        """From here on nothing goes wrong: workers that were lost are noticed, the rest works. Ends when nothing is
        to be done any more.
        """
        self.change(Step, Step.state.in_(("running", "undoing")), lease_s=0)
        for _ in range(rounds):
            self.let_time_pass()
            self.sweep()
            if not self.sent:
                return
            for message in self._drain():
                if held := self.claim(message):
                    self._work(held)
        raise AssertionError(f"does not settle: {self.picture()} {self.state()}")

    def _drain(self) -> Iterator[Message]:
        while self.sent:
            yield self.sent.pop(0)

    def _work(self, held: claims.Claim) -> None:
        if held.undo:
            chain.complete_undo(self.context, held)
        elif held.phase is Phase.HAND_OVER and not self.view(held.attempt_id).handed_over and not self.commit(held):
            self.fail(held)
        else:
            chain.complete(self.context, held, notes={})


@contextmanager
def open_world(database: Database, state: Path) -> Iterator[World]:
    """The world that this database holds. Its connections are closed at the end."""
    sent: list[Message] = []
    steady = [0.0]
    chosen = make_settings(state, database.engine.url.render_as_string(hide_password=False))
    sightings = Sightings(lambda: steady[0])
    try:
        yield World(Context(chosen, database, Signals(chosen.broker), sent.append, sightings), sent, steady)
    finally:
        database.close()


@contextmanager
def neighbour(world: World) -> Iterator[World]:
    """The same database, opened as another process would."""
    around = world.context
    database = Database(around.settings.database)
    try:
        yield World(Context(around.settings, database, around.signals, world.sent.append), world.sent)
    finally:
        database.close()


@contextmanager
def between(world: World, statement: str, action: Callable[[], Any], *, parameter: str = "") -> Iterator[Future[Any]]:
    """Inside the block, the first SQL statement that begins so waits until `action`, in a thread, is over or blocked.

    This plays the one unlucky moment that threads would need many tries to meet. The future is `action`'s result.
    """
    once = threading.Lock()
    future: Future[Any] = Future()
    with ThreadPoolExecutor(1) as pool:

        def interrupt(_c: object, _cursor: object, sql: str, parameters: object, *_: object) -> None:
            if sql.startswith(statement) and parameter in str(parameters) and once.acquire(blocking=False):
                running = pool.submit(action)
                running.add_done_callback(_pass_on(future))
                with suppress(TimeoutError):
                    running.exception(timeout=0.5)

        event.listen(world.context.database.engine, "before_cursor_execute", interrupt)
        try:
            yield future
        finally:
            event.remove(world.context.database.engine, "before_cursor_execute", interrupt)
    assert once.locked(), f"no statement began with {statement!r}"


@contextmanager
def per_commit(world: World, counts: Callable[[str, str], bool]) -> Iterator[list[int]]:
    """How many statements that `counts` (by their text and their parameters) each transaction has had, as committed."""
    engine, written, found = world.context.database.engine, Counter[str](), list[int]()

    def look(_c: object, _cursor: object, sql: str, parameters: object, *_: object) -> None:
        written["now"] += counts(sql, str(parameters))

    def commit(_: object) -> None:
        found.append(written.pop("now", 0))

    event.listen(engine, "before_cursor_execute", look)
    event.listen(engine, "commit", commit)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", look)
        event.remove(engine, "commit", commit)


@contextmanager
def statements(world: World) -> Iterator[list[str]]:
    """The SQL that was said to the database inside the block."""
    engine, said = world.context.database.engine, list[str]()

    def look(_c: object, _cursor: object, sql: str, *_: object) -> None:
        said.append(sql)

    event.listen(engine, "before_cursor_execute", look)
    try:
        yield said
    finally:
        event.remove(engine, "before_cursor_execute", look)


def _pass_on(to: Future[Any]) -> Callable[[Future[Any]], None]:
    def pass_on(done: Future[Any]) -> None:
        if error := done.exception():
            to.set_exception(error)
        else:
            to.set_result(done.result())

    return pass_on


def attempts_of(world: World, migration_id: int) -> list[int]:
    """The attempts of a migration, oldest first."""
    with world.context.database.read() as session:
        wanted = select(Attempt.id).where(Attempt.migration_id == migration_id).order_by(Attempt.id)
        return list(session.scalars(wanted))


def outdated(world: World, held: claims.Claim) -> claims.Claim:
    """The worker stalls, its lease ends, the step is tried again by another one under a new number."""
    world.let_lease_end(held)
    world.sweep()
    return held
