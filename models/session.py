"""The one place that makes database engines, so that every connection has the same guarantees."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, bindparam, create_engine, event, func, select
from sqlalchemy.orm import Session, sessionmaker
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

# A guest may be paused while we wait: a server that has vanished must be noticed in seconds, not in TCP's quarter of an
# hour. (libpq's names; a local socket knows nothing of them.)
_POSTGRESQL = {
    "connect_timeout": 3,
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 6000,
}


# Transactions are short. One of a process that was frozen in the middle holds rows that everybody else waits for.
_IDLE_AT_MOST = "15s"
# A server that is back tells nobody, and all workers ask at once.
_TRY_AGAIN_S = (0.05, 0.2)
_SQLITE_LOOKS_S = 0.11
_AT_ONCE = ContextVar("at_once", default=False)
_SORT = select(func.set_config("enable_sort", bindparam("may"), True))


def make_engine(url: str, *, patience_s: float = 0.0) -> Engine:
    """Open a database by its SQLAlchemy URL.

    PostgreSQL ends a transaction in which nothing is done for 15 s. A server of it that does not take a connection, as
    one that is started again, is tried for `patience_s`: nothing has been asked of it then, so nothing is asked twice.

    SQLite gets a write-ahead log, full synchronisation and `BEGIN IMMEDIATE`: a plain BEGIN that later wants to write
    answers "database is locked" at once, without waiting for the busy time-out.
    """
    if not url.startswith("sqlite"):
        server = create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20, connect_args=_POSTGRESQL)
        patiently = Retrying(
            retry=retry_if_exception_type(server.dialect.loaded_dbapi.OperationalError),
            stop=lambda state: _AT_ONCE.get() or stop_after_delay(patience_s)(state),
            wait=wait_random(*_TRY_AGAIN_S),
            reraise=True,
        )

        @event.listens_for(server, "do_connect")
        def _connect(dialect: Dialect, _record: object, words: Any, names: Any) -> Any:  # noqa: ANN401 - a raw connection
            return patiently.copy()(dialect.connect, *words, **names)

        @event.listens_for(server, "connect")
        def _limit(connection: Any, _record: object) -> None:  # noqa: ANN401 - a raw driver connection
            connection.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_AT_MOST}'")
            # A moment at the end of all that can be said in UTC cannot be said in every zone, and is read in this one.
            connection.execute("SET timezone = 'UTC'")
            # To compile a statement takes longer than any of ours.
            connection.execute("SET jit = off")
            connection.commit()

        return server
    engine = create_engine(url, connect_args={"timeout": 15.0, "check_same_thread": False, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:  # noqa: ANN401 - a raw driver connection
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reads_only = connection.get_execution_options().get("reads_only", False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")

    return engine


class Database:
    """An open database: `write` for what may change rows, `read` for what may not and so waits for nobody.

    Objects stay readable after the commit, because publishing comes after it. Transactions are short: no QEMU call
    inside one.
    """

    def __init__(self, url: str, *, patience_s: float = 0.0) -> None:
        self.engine = make_engine(url, patience_s=patience_s)
        self._write = sessionmaker(self.engine, expire_on_commit=False)
        options: dict[str, Any] = {"reads_only": True}
        if self.engine.dialect.name == "postgresql":
            # SQLite shows a reader one state by itself; PostgreSQL only when it is asked to.
            options |= {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}
        self._read = sessionmaker(self.engine.execution_options(**options), expire_on_commit=False)

    def write(self) -> AbstractContextManager[Session]:
        """A transaction that is committed at the end of the block, rolled back on an error."""
        return self._write.begin()

    def read(self) -> AbstractContextManager[Session]:
        """A transaction that sees one state of the database and changes nothing."""
        return self._read()

    def exclude_others(self, session: Session, what: int, *, patience_s: float | None = None) -> None:
        """Until the end of this writing transaction nobody else goes past here with the same number.

        In SQLite one that writes excludes all others anyway. Raises OperationalError when they take longer than
        `patience_s`, of this and of any other lock of the transaction.
        """
        if self.engine.dialect.name == "postgresql":
            if patience_s is not None:
                session.execute(select(func.set_config("lock_timeout", f"{patience_s * 1000:.0f}ms", True)))
            session.execute(select(func.pg_advisory_xact_lock(what)))

    def make_way(self) -> None:
        """For who writes for long, in one transaction after the other: whoever waits to write comes first now.

        In SQLite he does not queue, but looks ten times a second whether there is nobody, and nothing tells that he is
        there: so this waits for as long as he may sleep.
        """
        if self.engine.dialect.name == "sqlite":
            time.sleep(_SQLITE_LOOKS_S)

    @contextmanager
    def in_order(self, session: Session) -> Iterator[None]:
        """Inside the block, what is asked for in the order of an index is read along that.

        Where PostgreSQL believes that there are few, it would read them all and sort them, however many there are.
        """
        told = self.engine.dialect.name == "postgresql"
        if told:
            session.execute(_SORT, {"may": "off"})
        yield
        if told:
            session.execute(_SORT, {"may": "on"})

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the block a server that takes no connection is told of at once: for who asks again by himself."""
        before = _AT_ONCE.set(True)
        try:
            yield
        finally:
            _AT_ONCE.reset(before)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
