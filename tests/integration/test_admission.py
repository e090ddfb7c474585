"""Limits under threads: whoever decides about room at the same moment, no state of the database shows more at work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from haulier.definition.batch_file import BatchEntry, BatchFile
from haulier.errors import HaulierError
from haulier.planner.admission import MOST_KEPT
from haulier.services import batch_filing, batches, chain, claims, migrations
from haulier.services.admission import _granted, admit
from haulier.services.filing import Terms
from haulier.services.labels import pause_labels
from haulier.services.limits import LimitChange, set_limits
from models import IS_AT_WORK, Attempt, Database, Gate, LimitScope, Migration, Phase, Step, StepState
from tests.unit.services.world import DIGEST, LEASE_S, World, between, neighbour, open_world

ALLOWED, VMS = 3, 12
# As many as a large batch, each like the first one.
MANY = (
    "INSERT INTO batch (id, key, state, forgiven, created_at) VALUES (1, 'k', 'open', 0, now())",
    "INSERT INTO vm (id, name, node_id, state, epoch, definition, pinned, created_at)"
    " SELECT 100 + i, 'many' || i, node_id, state, epoch, definition, pinned, created_at"
    " FROM vm, generate_series(1, 10000) AS i WHERE vm.id = 1",
    "INSERT INTO migration (vm_id, source_id, target_id, state, offline, priority, rank, epoch, cancel_asked,"
    " needs_operator, problems, batch_id, created_at)"
    " SELECT 100 + i, source_id, target_id, state, offline, priority, rank + i, epoch, cancel_asked,"
    " needs_operator, problems, 1, created_at FROM migration, generate_series(1, 10000) AS i WHERE migration.id = 1",
)


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    """Twelve VMs whose migrations wait, and room for three."""
    with open_world(Database(database_url), tmp_path) as world:
        world.populate()
        allow(world, 0)
        for number in range(VMS):
            world.add_vm(f"vm{number}")
            world.file(f"vm{number}")
        allow(world, ALLOWED)
        yield world


def allow(world: World, number: int) -> None:
    set_limits(world.context, [LimitChange(LimitScope.CLUSTER, (), number)])


def at_work(world: World) -> int:
    with world.context.database.read() as session:
        return session.scalar(select(func.count()).select_from(Migration).where(IS_AT_WORK)) or 0


def states(world: World) -> set[str]:
    with world.context.database.read() as session:
        return {str(state) for state in session.scalars(select(Migration.state))}


def end_one(world: World) -> None:
    """A worker finds that some migration fails in its first check."""
    with world.context.database.read() as session:
        step = session.scalar(select(Step.id).where(Step.state == StepState.READY).order_by(func.random()).limit(1))
    if step is not None and (held := claims.claim(world.context, step, worker="w", lease_s=LEASE_S)):
        world.fail(held)


def cancel_last(world: World) -> None:
    """The last of those that wait, and some are left for the others."""
    with world.context.database.read() as session:
        waits = list(session.scalars(select(Migration.id).where(Migration.state == "queued").order_by(Migration.id)))
    if len(waits) > VMS // 3:
        # Its turn may have come.
        try:
            migrations.cancel_migration(world.context, waits[-1])
        except HaulierError as error:
            assert error.code in ("cancel_too_late", "migration_over")


def test_limit_holds_at_every_moment(world: World) -> None:
    """Each on connections of its own, as processes would: two admit, one ends, one cancels."""
    over = threading.Event()
    # Beside the others it may always come too late.
    cancel_last(world)
    admit(world.context)
    seen = [at_work(world)]

    def again(act: Callable[[World], Any]) -> None:
        with neighbour(world) as mine:
            while not over.is_set():
                act(mine)
                seen.append(at_work(mine))

    def until_nothing_waits() -> None:
        with neighbour(world) as mine:
            for _ in range(400):
                end_one(mine)
                admit(mine.context)
                if states(mine) <= {"undone", "cancelled"}:
                    break
        over.set()

    def admit_here(mine: World) -> None:
        admit(mine.context)

    with ThreadPoolExecutor(4) as pool:
        works = [pool.submit(again, act) for act in (admit_here, admit_here, cancel_last)]
        works.append(pool.submit(until_nothing_waits))
        for work in works:
            work.result()
    assert max(seen) <= ALLOWED
    assert world.count(Attempt) > seen[0] == ALLOWED, "or the limit was never tried"
    assert states(world) == {"undone", "cancelled"}


def test_two_that_decide_at_one_moment(postgres_url: str, tmp_path: Path) -> None:
    """One has counted what is at work, and the other begins somebody before the first has looked at who waits."""
    with open_world(Database(postgres_url), tmp_path) as world, neighbour(world) as other:
        world.populate()
        allow(world, 0)
        for name in ("web", "db"):
            world.add_vm(name)
            world.file(name)
        allow(world, 1)
        with between(world, "SELECT migration.id, ", lambda: admit(other.context)) as theirs:
            admit(world.context)
        theirs.result()
        assert at_work(world) == 1


def test_cancelled_in_the_moment_in_which_its_turn_comes(postgres_url: str, tmp_path: Path) -> None:
    with open_world(Database(postgres_url), tmp_path) as world, neighbour(world) as other:
        world.populate()
        world.add_vm()
        allow(world, 0)
        world.file()
        allow(world, 1)
        with between(world, "INSERT INTO attempt", lambda: migrations.cancel_migration(other.context, 1)) as theirs:
            admit(world.context)
        assert isinstance(theirs.exception(), HaulierError)
        assert world.state() == "running"


@pytest.fixture
def on_postgres(postgres_url: str, tmp_path: Path) -> Iterator[World]:
    """For moments that SQLite cannot have; one VM, and nobody's RAM may be moved."""
    with open_world(Database(postgres_url), tmp_path) as world:
        world.populate()
        world.add_vm()
        set_limits(world.context, [LimitChange(LimitScope.CLUSTER, (), 0, Gate.MOVE)])
        yield world


def rows_read(session: Session, world: World) -> int:
    """How many rows of migrations are read to find the first who may begin."""
    so_far = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'migration'"
    before = session.scalar(text(so_far)) or 0
    assert next(_granted(world.context, session, set())).source == "alpha"
    return (session.scalar(text(so_far)) or 0) - before


@pytest.mark.parametrize("counted", [False, True], ids=["fresh", "analyzed"])
def test_who_is_next_is_read_in_the_queues_order(on_postgres: World, counted: bool) -> None:
    """And not sorted out of all that wait: what a begin costs does not grow with the queue."""
    world = on_postgres
    allow(world, 0)
    world.file("web")
    with world.context.database.write() as session:
        for statement in MANY:
            session.execute(text(statement))
    with world.context.database.write() as session:
        if counted:
            session.execute(text("ANALYZE"))
    allow(world, 1)
    with world.context.database.read() as session:
        # The first ones are planned for their numbers, the later ones for any.
        read = [rows_read(session, world) for _ in range(20)]
    assert max(read[1:]) < 3 * MOST_KEPT


@pytest.mark.parametrize("statement", ["SELECT attempt.", "UPDATE migration"])
def test_cancelled_in_the_moment_in_which_it_comes_to_the_gate(on_postgres: World, statement: str) -> None:
    """Before the canceller has the attempt, and when it has: nobody works at one at the gate who would notice."""
    world = on_postgres
    world.file()
    held = world.go(Phase.MIRROR_DISKS)
    with (
        neighbour(world) as other,
        between(world, statement, lambda: chain.complete(other.context, held, notes={})) as theirs,
    ):
        migrations.cancel_migration(world.context, 1)
    theirs.result()
    assert world.state() == "rolling_back"
    assert "u" in world.picture()


def test_cancel_that_was_not_carried_out_is_found_at_the_gate(on_postgres: World) -> None:
    on_postgres.file()
    on_postgres.complete(on_postgres.go(Phase.MIRROR_DISKS))
    on_postgres.change(Migration, cancel_asked=True)
    on_postgres.sweep()
    assert on_postgres.state() == "rolling_back"


@pytest.mark.parametrize("statement", ["SELECT attempt.", "UPDATE migration"])
def test_cancel_and_hand_over_wait_for_each_other_in_one_order(on_postgres: World, statement: str) -> None:
    """The guest stands still in this moment: a deadlock would be told after a second, to either of them."""
    world = on_postgres
    set_limits(world.context, [LimitChange(LimitScope.CLUSTER, (), None, Gate.MOVE)])
    world.file()
    _move, hand = world.switch_over()
    with neighbour(world) as other:
        change = other.hand_over(hand)
        with between(world, statement, lambda: change.commit(DIGEST)) as theirs:
            try:
                migrations.cancel_migration(world.context, 1)
                cancelled = True
            except HaulierError as error:
                assert error.code == "cancel_too_late"
                cancelled = False
        assert theirs.result() is not cancelled


def test_batch_is_paused_while_somebody_decides(on_postgres: World) -> None:
    """What is told as waiting does wait."""
    world = on_postgres
    allow(world, 0)
    batch_filing.submit(world.context, BatchFile((BatchEntry(1, "web", "beta", None, (), None),)))
    allow(world, 1)
    with neighbour(world) as other, between(world, "SELECT vm.", lambda: batches.pause(other.context, 1)) as theirs:
        admit(world.context)
    assert theirs.result()["counts"] == {"running": 1} == batches.show_batch(world.context, 1)["counts"]


def test_label_is_paused_while_somebody_decides(on_postgres: World) -> None:
    """Who is told that none waits is told so after whoever was being begun."""
    world = on_postgres
    allow(world, 0)
    migrations.file_migration(world.context, "web", target="beta", terms=Terms(label="nightly"))
    allow(world, 1)
    with (
        neighbour(world) as other,
        between(world, "SELECT vm.", lambda: pause_labels(other.context, ["nightly"], paused=True)) as theirs,
    ):
        admit(world.context)
    assert theirs.result() == [{"label": "nightly", "paused": True, "rate": None, "waiting": 0}]
    assert states(world) == {"running"}


def test_batch_is_cancelled_while_some_of_it_begin(on_postgres: World) -> None:
    """The two take the rows in different orders, and so one after the other."""
    world = on_postgres
    allow(world, 0)
    names = [f"vm{number}" for number in range(4)]
    for name in names:
        world.add_vm(name)
    # The last of the file goes first.
    entries = (BatchEntry(1, name, "beta", number, (), None) for number, name in enumerate(names))
    batch_filing.submit(world.context, BatchFile(tuple(entries)))
    allow(world, 4)
    with neighbour(world) as other:
        with between(
            world, "UPDATE migration", lambda: batches.cancel(other.context, 1, undo=False), parameter="running"
        ) as theirs:
            admit(world.context)
        assert theirs.result()["counts"] == {"running": 4}
