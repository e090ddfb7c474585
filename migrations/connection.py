"""The connection on which revisions run, and the lock that lets only one process run them. Knows no table."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text

# One number per database (PostgreSQL keeps advisory locks apart by database); it must never change.
ADVISORY_LOCK = int.from_bytes(b"haulier", "big")

# How long a process waits until another one has finished upgrading.
WAIT_S = 600.0

# A revision that cannot get a table's lock gives up instead of standing in front of every query; it may be run again.
DDL_LOCK_TIMEOUT = "10s"


class UpgradeLocked(TimeoutError):
    """Another process has been changing the schema all the while; nothing was touched."""


def open_engine(url: str, *, read_only: bool = False) -> Engine:
    """Make an engine for revisions, which is not the application's.

    SQLite: foreign keys are off, because batch mode copies a table and drops the old one, and a drop with them on
    deletes the rows that point to it. What writes begins with BEGIN IMMEDIATE, which is the lock.
    """
    if not url.startswith("sqlite"):
        return create_engine(url, poolclass=NullPool)
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": WAIT_S, "isolation_level": None})
    begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA foreign_keys=OFF")
        if not read_only:
            _keep_write_ahead_log(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _keep_write_ahead_log(connection: sqlite3.Connection) -> None:
    # The switch is stored in the file. SQLite answers "database is locked" to the second of two that make it together,
    # without waiting for the busy time-out; once the upgrade has made it, the application's connections find it made.
    give_up_at = time.monotonic() + WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)
        else:
            return


@contextmanager
def revision_connection(url: str) -> Iterator[Connection]:
    """Yield the connection on which revisions may run, held by this process alone until the end of the block.

    SQLite: already inside the one transaction that holds all revisions of this run. PostgreSQL: outside any, so that
    each revision has its own, and an `autocommit_block` is possible.

    Raises `UpgradeLocked` if PostgreSQL's lock was not free in `WAIT_S`; SQLite says "database is locked" after that.
    """
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                with _sqlite_transaction(connection):
                    yield connection
            else:
                _take_advisory_lock(connection)
                yield connection
    finally:
        engine.dispose()


@contextmanager
def _sqlite_transaction(connection: Connection) -> Iterator[None]:
    with connection.begin():
        yield
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if broken:
            raise RuntimeError(f"the upgrade would leave rows that point to nothing, so it was undone: {broken[:5]}")


def _take_advisory_lock(connection: Connection) -> None:
    """Take PostgreSQL's lock, which the end of the connection gives back, however that comes about."""
    # Asks again and again rather than waiting in pg_advisory_lock(): a waiting statement keeps its snapshot, and the
    # other process's CREATE INDEX CONCURRENTLY waits for every older snapshot to go: a deadlock.
    give_up_at = time.monotonic() + WAIT_S
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK}):
        connection.commit()
        if time.monotonic() > give_up_at:
            raise UpgradeLocked(f"another process has been changing the schema for {WAIT_S:.0f} s; try again later")
        time.sleep(0.1)
    connection.execute(text(f"SET lock_timeout = '{DDL_LOCK_TIMEOUT}'"))
    connection.commit()
