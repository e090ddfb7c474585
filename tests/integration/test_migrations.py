"""The chain of revisions makes what the models say, on both databases, also when several processes start it at once."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, PrimaryKeyConstraint, inspect, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

import migrations
from migrations import chain as history
from migrations.connection import UpgradeLocked, open_engine, revision_connection
from models import Base, make_engine
from tests.fixtures.postgres import Cluster
from tests.integration.rows import NOW, store, store_world
from tests.integration.schema import Schema, read_schema, table_parts

ROOT = Path(migrations.__file__).parent.parent
CHILD_S = 60.0


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = open_engine(url)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def schema_of(url: str) -> Schema:
    with connected(url) as connection:
        return read_schema(connection)


def tables_of(url: str) -> set[str]:
    with connected(url) as connection:
        return set(inspect(connection).get_table_names())


@pytest.fixture
def modelled_url(empty_database_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A second database, of the same kind as `empty_database_url`, made by the models without any revision."""
    if empty_database_url.startswith("sqlite"):
        url = f"sqlite:///{tmp_path / 'modelled.db'}"
        create_all(url)
        yield url
        return
    cluster: Cluster = request.getfixturevalue("postgres_cluster")
    with cluster.database() as url:
        create_all(url)
        yield url


def create_all(url: str) -> None:
    with connected(url) as connection:
        Base.metadata.create_all(connection)


def test_chain_equals_models_as_alembic_sees_them(empty_database_url: str) -> None:
    history.upgrade(empty_database_url)
    with connected(empty_database_url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_chain_equals_models_as_the_database_sees_them(empty_database_url: str, modelled_url: str) -> None:
    """CHECKs, the conditions of partial indexes and AUTOINCREMENT, which Alembic does not compare."""
    history.upgrade(empty_database_url)
    assert schema_of(empty_database_url) == schema_of(modelled_url)


def test_what_the_database_sees_is_all_that_the_models_have(modelled_url: str) -> None:
    """Guards the comparison above: a reader that overlooks something would find two schemas equal."""
    seen = "\n".join(f"{name} {definition}" for name, definition in schema_of(modelled_url).items())
    for table in Base.metadata.tables.values():
        names = [c.name for c in table.constraints if not isinstance(c, PrimaryKeyConstraint)]
        for name in [*names, *(index.name for index in table.indexes)]:
            assert f"{name} " in seen, f"{table.name}: {name}"
        for index in table.indexes:
            line = next(line for line in seen.splitlines() if f"{index.name} " in line)
            assert ("WHERE" in line) == (index.dialect_options["sqlite"]["where"] is not None)
        if modelled_url.startswith("sqlite"):
            counted = f"table {table.name}: id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT " in seen
            assert counted == table.dialect_options["sqlite"]["autoincrement"], table.name


def test_constraint_names_never_change(database_url: str) -> None:
    """Revisions name what they drop, and the naming convention of the models must go on giving those names."""
    seen = " ".join(f"{name} {definition}" for name, definition in schema_of(database_url).items())
    for name in ("pk_vm", "fk_migration_vm_id_vm", "ck_migration_migrationstate", "uq_storage_node_id_name"):
        assert name in seen
    assert "fk_volume_transfer_volume_id_role_volume" in seen
    # AUTOINCREMENT stands beside a key that has no name.
    assert bool(re.search(r"\bpk_migration\b", seen)) == database_url.startswith("postgresql")


def test_down_to_base_and_up_again(empty_database_url: str) -> None:
    history.upgrade(empty_database_url)
    before = schema_of(empty_database_url)
    history.downgrade(empty_database_url, "base")
    assert tables_of(empty_database_url) == {"alembic_version"}
    assert schema_of(empty_database_url) == {}
    history.upgrade(empty_database_url)
    assert schema_of(empty_database_url) == before


def test_every_revision_goes_down_and_up_alone(empty_database_url: str) -> None:
    script = ScriptDirectory.from_config(history.make_config(empty_database_url))
    for revision in reversed(list(script.walk_revisions())):
        before = schema_of(empty_database_url)
        history.upgrade(empty_database_url, revision.revision)
        after = schema_of(empty_database_url)
        history.downgrade(empty_database_url, "-1")
        assert schema_of(empty_database_url) == before, revision.revision
        history.upgrade(empty_database_url, revision.revision)
        assert schema_of(empty_database_url) == after, revision.revision


def test_one_chain_without_branches() -> None:
    assert ScriptDirectory.from_config(history.make_config("sqlite://")).get_heads() == [migrations.HEAD]


def test_is_current_follows_the_chain(empty_database_url: str) -> None:
    assert not migrations.is_current(empty_database_url)
    history.upgrade(empty_database_url)
    assert migrations.is_current(empty_database_url)
    history.upgrade(empty_database_url)
    assert migrations.is_current(empty_database_url)
    history.downgrade(empty_database_url, "-1")
    assert not migrations.is_current(empty_database_url)


def test_asking_makes_no_sqlite_file(empty_sqlite_url: str, tmp_path: Path) -> None:
    assert not migrations.is_current(empty_sqlite_url)
    assert list(tmp_path.iterdir()) == []


def test_asking_waits_for_no_writer(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrations.connection.WAIT_S", 0.2)
    with revision_connection(sqlite_url):
        assert migrations.is_current(sqlite_url)


def logging_state() -> tuple[object, ...]:
    loggers = [logging.getLogger(name) for name in (None, "alembic", "alembic.runtime.migration", "bystander")]
    return tuple((logger.level, list(logger.handlers), logger.disabled, logger.propagate) for logger in loggers)


def test_upgrade_is_silent_and_leaves_logging_alone(empty_database_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = logging_state()
    history.upgrade(empty_database_url)
    migrations.is_current(empty_database_url)
    assert capfd.readouterr() == ("", "")
    assert logging_state() == before


def test_password_with_a_percent_sign() -> None:
    config = history.make_config("postgresql+psycopg://u:50%25@/db")
    assert config.attributes["url"].endswith("50%25@/db")


# A child says when it has imported everything, so that all of them start at the same moment.
_CHILD = """
import sys
from migrations import chain as history
print("ready", flush=True)
sys.stdin.readline()
history.upgrade(sys.argv[1])
"""


def start_child(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _CHILD, url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def children(url: str, how_many: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are about to upgrade `url` and wait for a line; none is left afterwards."""
    started = [start_child(url) for _ in range(how_many)]
    try:
        for child in started:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        yield started
    finally:
        for child in started:
            with child:
                child.kill()


def release(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def test_processes_that_upgrade_at_once_all_end_well(empty_database_url: str) -> None:
    with children(empty_database_url, 4) as started:
        for child in started:
            release(child)
        for child in started:
            _, complaint = child.communicate(timeout=CHILD_S)
            assert (child.returncode, complaint) == (0, "")
    assert migrations.is_current(empty_database_url)
    with connected(empty_database_url) as connection:
        assert connection.scalar(text("SELECT count(*) FROM alembic_version")) == 1


def test_upgrade_waits_for_another_one(empty_database_url: str) -> None:
    with children(empty_database_url, 1) as (child,):
        with revision_connection(empty_database_url):
            release(child)
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.5)
        _, complaint = child.communicate(timeout=CHILD_S)
        assert (child.returncode, complaint) == (0, "")
    assert migrations.is_current(empty_database_url)


def test_waiting_upgrade_does_not_block_an_index_built_concurrently(empty_postgres_url: str) -> None:
    """Waiting inside pg_advisory_lock() would keep a snapshot, and CREATE INDEX CONCURRENTLY waits for all of those."""
    with children(empty_postgres_url, 1) as (child,):
        with revision_connection(empty_postgres_url) as connection:
            holder = connection.scalar(text("SELECT pg_backend_pid()")) or 0
            connection.execute(text("CREATE TABLE big (number integer)"))
            connection.commit()
            release(child)
            wait_for_second_upgrade(empty_postgres_url, holder=holder)
            outside = connection.execution_options(isolation_level="AUTOCOMMIT")
            outside.execute(text("CREATE INDEX CONCURRENTLY ix_big ON big (number)"))
        _, complaint = child.communicate(timeout=CHILD_S)
        # PostgreSQL finds the deadlock and ends one of the two, so both must have ended well.
        assert (child.returncode, complaint) == (0, "")


def wait_for_second_upgrade(url: str, *, holder: int) -> None:
    """Wait until a session other than `holder` asked for the lock; between two questions its last word is COMMIT."""
    query = """SELECT count(*) FROM pg_stat_activity
               WHERE datname = %s AND pid <> %s AND (query = 'COMMIT' OR query LIKE '%%advisory_lock%%')"""
    host, database = str(make_url(url).query["host"]), make_url(url).database
    give_up_at = time.monotonic() + CHILD_S
    with closing(psycopg.connect(host=host, user="haulier", dbname="postgres", autocommit=True)) as watcher:
        while time.monotonic() < give_up_at:
            if watcher.execute(query, [database, holder]).fetchone() != (0,):
                return
            time.sleep(0.02)
    pytest.fail("the second upgrade never asked for the lock")


def test_lock_is_free_after_a_broken_statement(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrations.connection.WAIT_S", 5.0)
    with pytest.raises(DBAPIError), revision_connection(empty_database_url) as connection:
        connection.execute(text("SELECT * FROM no_such_table"))
    history.upgrade(empty_database_url)


def test_waiting_has_an_end(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrations.connection.WAIT_S", 0.2)
    with (
        revision_connection(empty_database_url),
        pytest.raises((UpgradeLocked, OperationalError), match=r"lock|changing"),
    ):
        history.upgrade(empty_database_url)
    assert not migrations.is_current(empty_database_url)


def test_statement_of_a_revision_does_not_wait_for_ever(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revision that stood in the queue for a table would keep everybody behind it from reading."""
    monkeypatch.setattr("migrations.connection.DDL_LOCK_TIMEOUT", "100ms")
    with connected(postgres_url) as reader:
        reader.execute(text("SELECT count(*) FROM vm"))
        with pytest.raises(OperationalError, match="lock timeout"), revision_connection(postgres_url) as connection:
            connection.execute(text("ALTER TABLE vm ADD COLUMN late integer"))


@pytest.fixture
def own_chain(tmp_path: Path) -> Path:
    """A copy of the migrations folder to which a test may add revisions."""
    return Path(shutil.copytree(history.FOLDER, tmp_path / "chain" / "migrations"))


def add_revision(chain: Path, body: str) -> None:
    head = ScriptDirectory.from_config(history.make_config("sqlite://", folder=chain)).get_current_head()
    lines = [
        "import sqlalchemy as sa",
        "from alembic import op",
        f"revision, down_revision = 'later', {head!r}",
        "def upgrade():",
        *(f"    {line}" for line in body.splitlines()),
    ]
    (chain / "versions" / "later.py").write_text("\n".join(lines))


def test_failed_revision_leaves_nothing_behind(empty_database_url: str, own_chain: Path) -> None:
    history.upgrade(empty_database_url)
    before = schema_of(empty_database_url)
    add_revision(own_chain, "op.create_table('half', sa.Column('id', sa.Integer))\nop.execute('NONSENSE')")
    with pytest.raises(DBAPIError, match="NONSENSE"):
        command.upgrade(history.make_config(empty_database_url, folder=own_chain), "head")
    assert schema_of(empty_database_url) == before
    assert migrations.is_current(empty_database_url)


def test_rebuilt_table_keeps_the_rows_that_point_to_it(sqlite_url: str, own_chain: Path) -> None:
    """Batch mode drops `vm`; with foreign keys on, that would delete what points to it, or be refused."""
    fill_one_operation(sqlite_url)
    add_revision(own_chain, "with op.batch_alter_table('vm', recreate='always') as it:\n    it.drop_column('qmp')")
    command.upgrade(history.make_config(sqlite_url, folder=own_chain), "head")
    with connected(sqlite_url) as connection:
        assert connection.scalar(text("SELECT count(*) FROM operation JOIN vm ON vm.id = operation.vm_id")) == 1


def test_revision_that_orphans_rows_is_undone(sqlite_url: str, own_chain: Path) -> None:
    fill_one_operation(sqlite_url)
    add_revision(own_chain, "op.execute('DELETE FROM vm')")
    with pytest.raises(RuntimeError, match="point to nothing"):
        command.upgrade(history.make_config(sqlite_url, folder=own_chain), "head")
    with connected(sqlite_url) as connection:
        assert connection.scalar(text("SELECT count(*) FROM vm")) == 1


_ONE_OPERATION = (
    "INSERT INTO node (id, name, address, state, port_first, port_last, network, facts)"
    " VALUES (1, 'a', '127.0.0.1', 'online', 1, 2, 'bridge', '{}')",
    "INSERT INTO vm (id, name, node_id, state, epoch, definition, pinned, created_at)"
    " VALUES (1, 'v', 1, 'stopped', 0, '{}', '{}', '2026-01-01 00:00:00.000000')",
    "INSERT INTO operation (id, vm_id, node_id, kind, arguments, state, problems, created_at)"
    " VALUES (1, 1, 1, 'start', '{}', 'done', '[]', '2026-01-01 00:00:00.000000')",
)


def fill_one_operation(url: str) -> None:
    """In plain SQL: the models may be of another revision than the database."""
    with connected(url) as connection:
        for statement in _ONE_OPERATION:
            connection.exec_driver_sql(statement)


def test_upgrade_while_the_application_has_the_file_open(empty_sqlite_url: str) -> None:
    """The application's engine keeps a write-ahead log; a revision must get along with it."""
    engine = make_engine(empty_sqlite_url)
    try:
        with engine.connect() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        history.upgrade(empty_sqlite_url)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM vm")) == 0
    finally:
        engine.dispose()


def test_upgraded_file_has_its_write_ahead_log(empty_sqlite_url: str) -> None:
    """Two that switch a new file to a write-ahead log together get "database is locked": the upgrade does it."""
    history.upgrade(empty_sqlite_url)
    with closing(sqlite3.connect(str(make_url(empty_sqlite_url).database))) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=CHILD_S,
        check=False,
    )


def test_works_from_a_wheel(tmp_path: Path, empty_sqlite_url: str) -> None:
    """In a wheel the packages stand at haulier/_app/, without alembic.ini; here under a name with a percent sign."""
    app = tmp_path / "100%" / "haulier" / "_app"
    for package in ("migrations", "models"):
        shutil.copytree(ROOT / package, app / package, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys, migrations as m; from migrations.chain import upgrade; upgrade(sys.argv[1])"
    code += "; print(m.__file__, m.is_current(sys.argv[1]))"
    done = run("-c", code, empty_sqlite_url, folder=tmp_path, PYTHONPATH=str(app))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{app / 'migrations' / '__init__.py'} True\n"


@pytest.mark.parametrize("by_option", [True, False])
def test_alembic_command_line(empty_sqlite_url: str, by_option: bool) -> None:
    if by_option:
        done = run("-m", "alembic", "-x", f"url={empty_sqlite_url}", "upgrade", "head", folder=ROOT)
    else:
        done = run("-m", "alembic", "upgrade", "head", folder=ROOT, HAULIER_DATABASE_URL=empty_sqlite_url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert migrations.is_current(empty_sqlite_url)


def test_command_line_without_an_address_says_what_to_do() -> None:
    done = run("-m", "alembic", "upgrade", "head", folder=ROOT, HAULIER_DATABASE_URL="")
    assert done.returncode != 0
    assert "HAULIER_DATABASE_URL" in done.stderr + done.stdout


def test_new_revision_is_empty_numbered_and_carries_the_rules(database_url: str, own_chain: Path) -> None:
    config = history.make_config(database_url, folder=own_chain)
    highest = max(path.name[:4] for path in (own_chain / "versions").glob("0*.py"))
    command.revision(config, message="Nothing new", autogenerate=True)
    file = own_chain / "versions" / f"{int(highest) + 1:04d}_nothing_new.py"
    source = file.read_text()
    compile(source, file, "exec")
    assert "op." not in source.split("def upgrade")[1], "the models differ from the chain"
    for rule in ("Both databases", "Short transactions", "Expand, then contract", "No data loss"):
        assert f"# * {rule}" in source


def test_first_revision_can_be_written_from_the_models_alone(
    empty_database_url: str, modelled_url: str, own_chain: Path
) -> None:
    """And what Alembic writes needs no import from the models, which will be others one day."""
    shutil.rmtree(own_chain / "versions")
    (own_chain / "versions").mkdir()
    config = history.make_config(empty_database_url, folder=own_chain)
    command.revision(config, message="first", autogenerate=True)
    (file,) = (own_chain / "versions").glob("0001_first.py")
    assert "models" not in file.read_text().split("from __future__")[1]
    command.upgrade(config, "head")
    assert schema_of(empty_database_url) == schema_of(modelled_url)


def test_what_waits_does_not_come_back_by_an_older_version(database_url: str) -> None:
    """Which would neither begin it nor let its VM go."""
    with connected(database_url) as connection:
        store_world(connection)
        store(connection, "migration", id=7, vm_id=3, state="queued")
    history.downgrade(database_url, "0006")
    with connected(database_url) as connection:
        assert connection.scalar(text("SELECT state FROM migration WHERE id = 7")) == "cancelled"


def test_window_of_a_group_is_none_of_a_node_in_an_older_version(database_url: str) -> None:
    with connected(database_url) as connection:
        store_world(connection)
        store(connection, "maintenance_window", id=1)
        store(connection, "maintenance_window", id=2, node_id=None, group_id=1)
    history.downgrade(database_url, "0018")
    with connected(database_url) as connection:
        assert connection.scalars(text("SELECT id FROM maintenance_window")).all() == [1]
    history.upgrade(database_url)
    with connected(database_url) as connection:
        assert connection.scalar(text("SELECT node_id FROM maintenance_window")) == 1


@pytest.mark.parametrize(
    ("hand_over", "gate", "older", "newer"),
    [
        # One waits at the gate; an older version lets it through, and it is past it from then on.
        ("waiting", NOW, "ready", True),
        # One has not come there yet.
        ("waiting", None, "waiting", False),
        ("running", NOW, "running", True),
    ],
)
def test_gate_is_left_and_found_again(
    database_url: str, hand_over: str, gate: datetime | None, older: str, newer: bool
) -> None:
    moving = NOW if hand_over == "running" else None
    with connected(database_url) as connection:
        store_world(connection)
        store(connection, "migration", id=7, vm_id=3, state="running")
        store(connection, "attempt", id=7, migration_id=7, at_gate_since=gate, moving_at=moving)
        store(connection, "step", id=7, attempt_id=7, phase="hand_over", side="target", state=hand_over)
    history.downgrade(database_url, "0007")
    with connected(database_url) as connection:
        assert connection.scalar(text("SELECT state FROM step WHERE id = 7")) == older
    history.upgrade(database_url)
    with connected(database_url) as connection:
        assert (connection.scalar(text("SELECT moving_at FROM attempt WHERE id = 7")) is not None) is newer


def test_sql_can_be_written_for_an_administrator(capsys: pytest.CaptureFixture[str]) -> None:
    command.upgrade(history.make_config("postgresql+psycopg://"), "head", sql=True)
    assert "CREATE UNIQUE INDEX uq_migration_one_open" in capsys.readouterr().out


def test_parts_of_a_table_are_compared_whatever_their_order() -> None:
    one = "CREATE TABLE t (\n a INTEGER, CONSTRAINT c CHECK (a IN (1, 2)),\n\tb VARCHAR(3))"
    other = 'CREATE TABLE "t" (b VARCHAR(3), a INTEGER, CONSTRAINT c CHECK (a IN (1, 2)))'
    assert sorted(table_parts(one)) == sorted(table_parts(other))
    assert "CONSTRAINT c CHECK (a IN (1, 2))" in table_parts(one)
