"""What `models.Database` promises: who may write is alone from the beginning, who only reads waits for nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import QueuePool, event, select, text, update
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError

from haulier.planner.failures import FailureClass, class_of
from haulier.services.defects import problems_of
from models import Database, Node, Vm
from models import session as session_module
from tests.fixtures.postgres import Server
from tests.integration.rows import NOW

THREADS = 4
ROUNDS = 50


def fill(database: Database) -> None:
    """One VM, whose epoch is the number that the threads count up."""
    with database.write() as session:
        node = Node(name="a", address="127.0.0.1", port_first=1, port_last=2)
        session.add(Vm(name="v", node=node, definition={}, created_at=NOW))


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    with closing(Database(sqlite_url)) as database:
        fill(database)
        yield database


@pytest.fixture
def other(database: Database) -> Iterator[Database]:
    """The same file, opened as another process would."""
    with closing(Database(database.engine.url.render_as_string())) as other:
        yield other


@pytest.fixture
def impatient(other: Database) -> Database:
    """As `other`, but instead of waiting for a lock it fails at once."""
    event.listen(other.engine, "connect", lambda raw, _record: raw.execute("PRAGMA busy_timeout=0"))
    return other


def count_up(database: Database, start: threading.Barrier) -> None:
    """Read, then write what was read plus one: the pattern that loses updates, or cannot get its write lock."""
    start.wait()
    for _ in range(ROUNDS):
        with database.write() as session:
            epoch = session.scalars(select(Vm.epoch)).one()
            session.execute(update(Vm).values(epoch=epoch + 1))


def count_together(databases: list[Database]) -> None:
    start = threading.Barrier(len(databases))
    with ThreadPoolExecutor(len(databases)) as pool:
        for future in [pool.submit(count_up, database, start) for database in databases]:
            future.result()


def epoch_of(database: Database) -> int:
    with database.read() as session:
        return int(session.scalars(select(Vm.epoch)).one())


def test_threads_that_read_then_write_lose_nothing(database: Database) -> None:
    count_together([database] * THREADS)
    assert epoch_of(database) == THREADS * ROUNDS


def test_processes_that_read_then_write_lose_nothing(database: Database, other: Database) -> None:
    """Nothing is shared but the file."""
    count_together([database, other])
    assert epoch_of(other) == 2 * ROUNDS


def test_writer_holds_the_lock_before_it_has_done_anything(database: Database, impatient: Database) -> None:
    with database.write() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(OperationalError, match="database is locked"), impatient.write() as late:
            late.execute(text("SELECT 1"))
    with impatient.write() as late:
        late.execute(text("SELECT 1"))


def test_who_writes_for_long_lets_another_writer_by(database: Database, other: Database) -> None:
    """In SQLite he does not queue: without that he would find somebody each time that he looks."""
    begins, order = threading.Event(), list[str]()
    event.listen(other.engine, "before_cursor_execute", lambda *_: begins.set())

    def wait_and_write() -> None:
        with other.write() as session:
            session.execute(update(Vm).values(epoch=1))
        order.append("other")

    with ThreadPoolExecutor(1) as pool:
        with database.write() as session:
            session.execute(update(Vm).values(epoch=2))
            waiting = pool.submit(wait_and_write)
            assert begins.wait(10)
        database.make_way()
        with database.write():
            order.append("again")
        waiting.result()
    assert order == ["other", "again"]


def test_reader_waits_for_no_writer(database: Database, impatient: Database) -> None:
    with database.write() as session:
        session.execute(update(Vm).values(epoch=7))
        assert epoch_of(impatient) == 0
    assert epoch_of(impatient) == 7


def test_writer_waits_for_no_reader(database: Database, impatient: Database) -> None:
    with database.read() as session:
        assert session.scalars(select(Vm.epoch)).one() == 0
        with impatient.write() as writer:
            writer.execute(update(Vm).values(epoch=7))
        assert session.scalars(select(Vm.epoch)).one() == 0
    assert epoch_of(database) == 7


def test_reader_cannot_write_to_postgresql(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        fill(database)
        with database.read() as session, pytest.raises(InternalError, match="read-only transaction"):
            session.execute(update(Vm).values(epoch=99))
        assert epoch_of(database) == 0


def test_reader_of_sqlite_leaves_nothing_behind(database: Database, impatient: Database) -> None:
    """SQLite lets it write; what it wrote is gone at the end of the block, and so is its lock."""
    with database.read() as session:
        session.execute(update(Vm).values(epoch=99))
    with impatient.write() as writer:
        assert writer.scalars(select(Vm.epoch)).one() == 0


def test_connection_of_a_reader_can_write_afterwards(database_url: str) -> None:
    """Both take it from one pool: what was read-only must not stay so, and what was not must become so."""
    with closing(Database(database_url)) as database:
        fill(database)
        for epoch in (1, 2):
            assert epoch_of(database) == epoch - 1
            with database.write() as session:
                session.execute(update(Vm).values(epoch=epoch))
        assert epoch_of(database) == 2
        assert isinstance(database.engine.pool, QueuePool)
        assert database.engine.pool.checkedin() == 1


def test_write_is_undone_by_an_error(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as session:
        session.execute(update(Vm).values(epoch=99))
        raise ZeroDivisionError
    assert epoch_of(database) == 0


def test_objects_stay_readable_after_the_commit(database_url: str) -> None:
    with closing(Database(database_url)) as database:
        fill(database)
        with database.write() as session:
            vm = session.scalars(select(Vm)).one()
            vm.epoch = 5
        assert (vm.name, vm.epoch) == ("v", 5)


def test_every_connection_is_prepared(database: Database) -> None:
    with database.engine.connect() as one, database.engine.connect() as two:
        for connection in (one, two):
            raw = connection.connection.driver_connection
            assert raw is not None
            names = ("journal_mode", "synchronous", "foreign_keys")
            assert [raw.execute(f"PRAGMA {name}").fetchone() for name in names] == [("wal",), (2,), (1,)]


def test_transaction_of_a_frozen_process_is_ended(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds a row that others wait for, and its process is there, so that no keep-alive tells."""
    monkeypatch.setattr(session_module, "_IDLE_AT_MOST", "200ms")
    lock = text("SELECT pg_advisory_xact_lock(7)")
    with closing(Database(postgres_url)) as frozen, closing(Database(postgres_url)) as other:
        stuck = frozen.engine.connect()
        stuck.execute(lock)
        with other.write() as session:
            session.execute(lock)
        with pytest.raises(InternalError, match="idle-in-transaction") as ended:
            stuck.execute(text("SELECT 1"))
        assert problems_of(ended.value)[0].code == "database_failed"
        stuck.close()
        with frozen.read() as session:
            assert session.scalar(text("SELECT 1")) == 1, "the next one has another connection"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server.running() as server:
        yield server


def count_tries(database: Database, monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """One more for each time that somebody begins to make a connection."""
    begun, dialect = threading.Semaphore(0), database.engine.dialect
    connect = dialect.connect

    def counted(*words: Any, **names: Any) -> Any:
        begun.release()
        return connect(*words, **names)

    monkeypatch.setattr(dialect, "connect", counted)
    return begun


def test_server_that_is_started_again_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.cluster.url("postgres")
    with closing(Database(url, patience_s=60)) as database, ThreadPoolExecutor(1) as pool:

        def ask() -> object:
            with database.read() as session:
                return session.scalar(text("SELECT 1"))

        assert ask() == 1
        begun = count_tries(database, monkeypatch)
        server.kill()
        asking = pool.submit(ask)
        for _ in range(3):
            assert begun.acquire(timeout=30), "the connection of before is dead, and it asks for a new one again"
        server.start()
        assert asking.result() == 1


def test_server_that_stays_away_is_told_of(server: Server) -> None:
    with closing(Database(server.cluster.url("postgres"), patience_s=0.2)) as database:
        server.kill()
        with pytest.raises(OperationalError) as raised, database.read() as session:
            session.execute(text("SELECT 1"))
    (problem,) = problems_of(raised.value)
    assert (problem.code, class_of(problem.code)) == ("database_failed", FailureClass.PASSING)
    assert "\n" not in problem.message


def test_statement_that_is_wrong_is_a_defect(database_url: str) -> None:
    with (
        closing(Database(database_url)) as database,
        pytest.raises(DBAPIError) as raised,
        database.read() as session,
    ):
        session.execute(text("SELECT nothing FROM nowhere"))
    assert problems_of(raised.value)[0].code == "unexpected"
