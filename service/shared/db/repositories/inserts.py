"""Inserts beside the unit of work: of rows that may be there already, and of many new ones."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, make_transient_to_detached

from service.shared.db.models.base import DEFAULT_PROJECT, PROJECT, Base, OfProject

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sqlalchemy import Insert


def insert_minding(session: Session, model: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that takes `on_conflict_do_nothing` or `on_conflict_do_update`, as both databases can, each in its own
    dialect.
    """
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    return postgresql.insert(model) if is_postgresql else sqlite.insert(model)


def insert_new(session: Session, rows: Collection[Base]) -> None:
    """Insert new rows of one class by one statement; afterwards they are the session's, as if it had flushed them.

    It takes a third of the time that the unit of work does.
    """
    if not rows:
        return
    for row in rows:
        assign_project(session, row)
    kind = type(next(iter(rows)))
    values = [{name: row.__dict__.get(key, default) for key, name, default in _columns(kind)} for row in rows]
    # Most columns of a new row are null, and what is not named is not bound.
    named = [name for name in values[0] if any(row[name] is not None for row in values)]
    session.execute(_statement(kind), [{name: row[name] for name in named} for row in values])
    for row, given in zip(rows, values, strict=True):
        row.__dict__ |= {key: given[name] for key, name, _ in _columns(kind)}
        make_transient_to_detached(row)
    session.add_all(rows)


@contextmanager
def pipelined(session: Session) -> Iterator[None]:
    """Send the inserts within one after the other, and wait for all of them at the end; SQLite has nothing to wait for.

    So several cost one round trip to PostgreSQL, and the next rows are made while it stores the last ones. What returns
    rows cannot be within: queries, and inserts of rows whose keys the database chooses.

    Raises:
        DBAPIError: if any of them fails, perhaps after others were sent.
    """
    connection = session.connection()
    driven: Any = connection.connection.driver_connection
    if connection.dialect.name != "postgresql":
        yield
        return
    failure = connection.dialect.loaded_dbapi.Error
    try:
        with driven.pipeline():
            yield
    except failure as error:  # that of the end, which SQLAlchemy does not see
        is_disconnect = connection.dialect.is_disconnect(error, driven, None)
        if is_disconnect:
            connection.invalidate(error)
        raise DBAPIError.instance(
            None, None, error, failure, connection_invalidated=is_disconnect, dialect=connection.dialect
        ) from error


def assign_project(session: Session, row: object) -> None:
    """A row that belongs to no project yet belongs to the session's."""
    if isinstance(row, OfProject) and row.project is None:
        row.project = session.info[PROJECT] or DEFAULT_PROJECT


@lru_cache
def _columns(kind: type[Base]) -> list[tuple[str, str, Any]]:
    """Attribute, column and default of everything that a row has."""
    found = []
    for attribute in inspect(kind).column_attrs:
        [column] = attribute.columns
        default = None if column.default is None else column.default.arg
        found.append((attribute.key, column.name, default))
    return found


@lru_cache
def _statement(kind: type[Base]) -> Insert:
    return insert(Base.metadata.tables[kind.__tablename__])
