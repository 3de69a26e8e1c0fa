"""Engines for the two databases, set up so that both keep what they promise."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from sqlalchemy import Connection, Engine, event, make_url
from sqlalchemy import create_engine as sqlalchemy_create_engine

from service.shared.db.models.base import to_json
from service.shared.errors import SettingsError

BUSY_TIMEOUT_S = 10
LOCK_TIMEOUT_S = 10
WAL_RETRY_S = 0.02
POOL_SIZE = MAX_OVERFLOW = 10
MAX_CONNECTIONS = POOL_SIZE + MAX_OVERFLOW  # of one process


def create_engine(url: str, *, pooler: bool = False) -> Engine:
    """An engine whose transactions write by default; `execution_options(read_only=True)` gives one that reads.

    SQLite: WAL, fully synchronous, foreign keys on, and a writing transaction takes the write lock at once
    (a later upgrade of a read lock would fail instead of wait).

    Args:
        pooler: PostgreSQL is reached through one that keeps no session for a client.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(url)
    kept = {"prepare_threshold": None} if pooler else {"options": f"-c lock_timeout={LOCK_TIMEOUT_S}s -c timezone=UTC"}
    engine = sqlalchemy_create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        json_serializer=to_json,
        pool_pre_ping=True,
        pool_size=POOL_SIZE,
        max_overflow=MAX_OVERFLOW,
        pool_timeout=10,
        hide_parameters=True,
        connect_args={"connect_timeout": 5, **kept},
    )
    if pooler:
        event.listen(
            engine,
            "begin",
            lambda connection: connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"),
        )
    return engine


def check_sqlite() -> None:
    """Whether there is an SQLite that keeps its files whole.

    Raises:
        SettingsError: if not.
    """
    _sqlite_driver()


def _sqlite(url: str) -> Engine:
    engine = sqlalchemy_create_engine(
        url,
        module=_sqlite_driver(),
        json_serializer=to_json,
        pool_size=POOL_SIZE,
        max_overflow=MAX_OVERFLOW,
        pool_timeout=BUSY_TIMEOUT_S,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT_S},
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _sqlite_driver() -> Any:
    """The standard library's driver, unless its SQLite has the WAL-reset bug (3.7.0 to 3.51.2) that corrupts files."""
    if _wal_is_safe(sqlite3.sqlite_version_info):
        return sqlite3
    try:
        from pysqlite3 import dbapi2
    except ImportError:
        dbapi2 = None
    if dbapi2 is None or not _wal_is_safe(dbapi2.sqlite_version_info):
        raise SettingsError(
            f"SQLite {sqlite3.sqlite_version} can corrupt databases (WAL-reset bug): install pysqlite3>=0.6.1 "
            "or use PostgreSQL"
        )
    return dbapi2


def _wal_is_safe(version: tuple[int, ...]) -> bool:
    # https://sqlite.org/wal.html#walresetbug: fixed in 3.51.3, backported to 3.50.7 and 3.44.6
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions: _begin_sqlite does
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _switch_to_wal(cursor: Any) -> None:
    """Set the journal mode, which stays with the file. SQLite does not wait for the lock that the switch needs: of
    several first connections to a new file all but one would fail with "database is locked".
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except _sqlite_driver().OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(WAL_RETRY_S)


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN DEFERRED" if read_only else "BEGIN IMMEDIATE")
