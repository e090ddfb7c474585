"""What must never be is refused by SQL itself, on both databases, and the same rows are allowed when closed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import (
    CheckConstraint,
    Connection,
    DateTime,
    Engine,
    Enum,
    UniqueConstraint,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import Session

from models import Base, Event, Migration, Vm, Volume, make_engine
from models.base import UtcDateTime
from tests.fixtures.databases import BOTH
from tests.fixtures.postgres import Cluster
from tests.integration.never import NEVER, Never, crossing
from tests.integration.never_emptying import NEVER_EMPTYING
from tests.integration.rows import EXAMPLES, VOLUME_OF, Row, example, store, store_world

ALL_OF_THEM = (*NEVER, *NEVER_EMPTYING)
FORBIDDEN = pytest.mark.parametrize("never", ALL_OF_THEM, ids=lambda never: never.what)


@pytest.fixture(scope="module", params=BOTH)
def shared_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The application's engine on one database for all tests here, SQLite and PostgreSQL in turn: none commits."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            template = request.getfixturevalue("_sqlite_template")
            url = f"sqlite:///{shutil.copy(template, tmp_path_factory.mktemp('rules') / 'haulier.db')}"
        else:
            cluster: Cluster = request.getfixturevalue("postgres_cluster")
            url = stack.enter_context(cluster.database(request.getfixturevalue("_postgres_template")))
        engine = make_engine(url)
        stack.callback(engine.dispose)
        yield engine


@pytest.fixture
def world(shared_engine: Engine) -> Iterator[Connection]:
    """A transaction that sees the rows to which the examples point, and is rolled back."""
    with shared_engine.connect() as connection, connection.begin() as transaction:
        store_world(connection)
        yield connection
        transaction.rollback()


def refusal(error: IntegrityError) -> str:
    """What the database says has been broken: the constraint's name, or for a unique index of SQLite its columns.

    Of a foreign key SQLite says only that it is one.
    """
    diagnosis: Any = getattr(error.orig, "diag", None)
    if diagnosis is not None:
        return str(diagnosis.constraint_name)
    return str(error.orig).split(": ", 1)[-1]


@FORBIDDEN
def test_refused(world: Connection, never: Never) -> None:
    if never.beside is not None:
        store(world, never.table, **never.beside)
    before = count(world, never.table)
    with pytest.raises(IntegrityError) as caught, world.begin_nested():
        store(world, never.table, **never.row)
    assert refusal(caught.value) == (never.sqlite if never.sqlite and world.dialect.name == "sqlite" else never.by)
    assert count(world, never.table) == before


@FORBIDDEN
def test_allowed_when_closed_or_apart(world: Connection, never: Never) -> None:
    for beside, row in never.allowed:
        with world.begin_nested() as savepoint:
            if never.beside is not None:
                store(world, never.table, **never.beside | beside)
            store(world, never.table, **never.row | row)
            savepoint.rollback()


def count(connection: Connection, table: str) -> int:
    return connection.scalar(select(func.count()).select_from(Base.metadata.tables[table])) or 0


def test_every_constraint_is_tried() -> None:
    """A CHECK, a unique rule or a foreign key of several columns in the models must stand above as well."""
    named = {str(index.name) for table in Base.metadata.tables.values() for index in table.indexes if index.unique}
    for table in Base.metadata.tables.values():
        rules = (c for c in table.constraints if isinstance(c, CheckConstraint | UniqueConstraint))
        named |= {str(rule.name) for rule in rules if not rule._type_bound}
        named |= {str(rule.name) for rule in table.foreign_key_constraints if len(rule.columns) > 1}
    assert named - {never.by for never in ALL_OF_THEM} == UNIQUE_NAMES | {POINTED_AT}


UNIQUE_NAMES = {"uq_node_name", "uq_storage_node_id_name", "uq_vm_name"}
# Says no more than the primary key: it is there so that volume_transfer can point at the role.
POINTED_AT = "uq_volume_id_role"


@pytest.mark.parametrize("table", ["node", "storage", "vm"])
def test_names_are_unique(world: Connection, table: str) -> None:
    with world.begin_nested():
        store(world, table, name="twice")
    with pytest.raises(IntegrityError), world.begin_nested():
        store(world, table, name="twice")


WORDS = [
    (table.name, column.name)
    for table in Base.metadata.sorted_tables
    for column in table.columns
    if isinstance(column.type, Enum)
]
# What must be empty beside an unknown word, because another rule reads it together with a known one.
BESIDE_UNKNOWN: dict[tuple[str, str], Row] = {
    ("allocation", "kind"): {"path": None},
    ("queue_limit", "scope"): {"peer_id": None},
}


@pytest.mark.parametrize(("table", "column"), WORDS)
@pytest.mark.parametrize("word", ["nonsense", "", "RUNNING"])
def test_unknown_word_is_refused(world: Connection, table: str, column: str, word: str) -> None:
    with pytest.raises(IntegrityError) as caught, world.begin_nested():
        store(world, table, **{column: word}, **BESIDE_UNKNOWN.get((table, column), {}))
    enum: Any = Base.metadata.tables[table].columns[column].type
    assert refusal(caught.value) == f"ck_{table}_{enum.name}"


@pytest.mark.parametrize(("table", "column"), WORDS)
def test_every_word_of_an_enum_is_known_to_sql(world: Connection, table: str, column: str) -> None:
    """The word alone is tried: another rule may refuse it beside the rest of the row, the enum's CHECK must not."""
    enum: Any = Base.metadata.tables[table].columns[column].type
    for word in enum.enums:
        try:
            with world.begin_nested() as savepoint:
                store(world, table, **{column: word})
                savepoint.rollback()
        except IntegrityError as error:
            assert refusal(error) != f"ck_{table}_{enum.name}"


# Without volume_transfer.role: each word that it must not have beside the volume's number is tried above.
POINTERS = [
    (table.name, column.name)
    for table in Base.metadata.sorted_tables
    for column in table.columns
    if column.foreign_keys and not isinstance(column.type, Enum)
]
# A window that points to a group points to no node.
WITH_A_POINTER: dict[tuple[str, str], Row] = {("maintenance_window", "group_id"): {"node_id": None}}


@pytest.mark.parametrize(("table", "column"), POINTERS)
def test_row_that_points_to_nothing_is_refused(world: Connection, table: str, column: str) -> None:
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), world.begin_nested():
        store(world, table, **{column: 999} | WITH_A_POINTER.get((table, column), {}))


@pytest.mark.parametrize("table", EXAMPLES)
def test_example_is_valid(world: Connection, table: str) -> None:
    """Guards the tests above: a row that is refused for another reason would prove nothing."""
    with world.begin_nested():
        store(world, table)


def test_there_is_an_example_of_every_table() -> None:
    assert set(EXAMPLES) == set(Base.metadata.tables)


def test_every_moment_is_a_utc_moment() -> None:
    for table in Base.metadata.tables.values():
        for column in table.columns:
            assert not isinstance(column.type, DateTime), f"{table.name}.{column.name}"


MOMENTS = [
    (table.name, column.name)
    for table in Base.metadata.sorted_tables
    for column in table.columns
    if isinstance(column.type, UtcDateTime)
]


@pytest.mark.parametrize(("table", "column"), MOMENTS)
def test_naive_moment_is_refused(world: Connection, table: str, column: str) -> None:
    with pytest.raises(StatementError, match="without a time zone"), world.begin_nested():
        store(world, table, **{column: datetime(2026, 1, 2)})


def test_naive_moment_is_refused_in_a_condition(world: Connection) -> None:
    with pytest.raises(StatementError, match="without a time zone"), world.begin_nested():
        world.execute(select(Event).where(Event.at < datetime(2026, 1, 2)))


def inner_session(connection: Connection) -> Session:
    """A session whose commits stay inside the test's transaction."""
    return Session(connection, join_transaction_mode="create_savepoint")


def test_moment_comes_back_as_the_same_moment_in_utc(world: Connection) -> None:
    """The test server's own zone is an odd one: what comes back must not depend on it."""
    here = datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    with inner_session(world) as session, session.begin():
        session.add(Event(at=here, kind="zone", data={}))
    with inner_session(world) as session:
        (found,) = session.scalars(select(Event).where(Event.at == here)).all()
    assert found.at == here
    assert found.at.tzinfo is UTC
    assert found.at.isoformat() == "2026-07-01T06:30:00.123456+00:00"


def test_moments_of_two_zones_are_ordered_by_time(world: Connection) -> None:
    east, west = timezone(timedelta(hours=9)), timezone(timedelta(hours=-9))
    with inner_session(world) as session, session.begin():
        session.add(Event(at=datetime(2026, 1, 2, 8, tzinfo=east), kind="first", data={}))
        session.add(Event(at=datetime(2026, 1, 1, 20, tzinfo=west), kind="second", data={}))
    with inner_session(world) as session:
        assert session.scalars(select(Event.kind).order_by(Event.at)).all() == ["first", "second"]


@pytest.mark.parametrize("table", ["volume", "migration", "operation", "tpm_ledger"])
def test_vm_that_something_depends_on_cannot_be_deleted(world: Connection, table: str) -> None:
    with world.begin_nested():
        store(world, "vm", id=7, name="kept")
        store(world, table, vm_id=7)
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), world.begin_nested():
        world.execute(delete(Vm).where(Vm.id == 7))


@pytest.mark.parametrize("state", ["ready", "running", "done", "refused", "failed"])
def test_vm_with_an_operation_cannot_be_deleted_and_keeps_it(world: Connection, state: str) -> None:
    """Also by the models: neither the operation nor the VM that it names is lost with the other."""
    with world.begin_nested():
        store(world, "vm", id=7, name="kept")
        store(world, "operation", id=7, vm_id=7, state=state)
    with inner_session(world) as session, pytest.raises(IntegrityError, match=r"(?i)foreign key"), session.begin():
        session.delete(session.get_one(Vm, 7))
    operation = Base.metadata.tables["operation"]
    assert world.scalar(select(operation.c.vm_id).where(operation.c.id == 7)) == 7


@pytest.mark.parametrize("role", VOLUME_OF)
def test_role_of_a_volume_that_crosses_stays_what_is_recorded(world: Connection, role: str) -> None:
    other = "unused" if role != "unused" else "disk"
    with world.begin_nested():
        store(world, "volume_transfer", volume_id=VOLUME_OF[role], **crossing(role))
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), world.begin_nested():
        world.execute(update(Volume).where(Volume.id == VOLUME_OF[role]).values(role=other))


def test_number_of_a_migration_never_comes_back(world: Connection) -> None:
    """Also that of the newest one, which SQLite gives again to a table that does not count."""
    newest = 2
    for _ in range(3):
        number = world.scalars(insert(Migration).values(example("migration")).returning(Migration.id)).one()
        assert number > newest
        newest = number
        world.execute(delete(Migration).where(Migration.id == number))


def test_operation_outlives_a_vm_that_could_not_be_defined(world: Connection) -> None:
    with world.begin_nested():
        store(world, "operation", vm_id=None, state="refused")
        store(world, "operation", vm_id=None, state="refused")
        assert count(world, "operation") == 2


def test_numbers_beyond_two_thousand_million(world: Connection) -> None:
    with world.begin_nested():
        store(world, "volume", size_bytes=2**62)
        assert world.scalar(select(func.max(Base.metadata.tables["volume"].c.size_bytes))) == 2**62
