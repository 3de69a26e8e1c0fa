"""Inserts that are sent without waiting for each: all of them are there, or the error is one like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from service.shared.db.models import Base
from service.shared.db.repositories.inserts import pipelined
from service.shared.tallies import TallyName

if TYPE_CHECKING:
    from service.shared.unit_of_work import Database

TALLIES = Base.metadata.tables["tallies"]
NEW = insert(TALLIES).inline()


def tallies(*names: str | None) -> list[dict[str, Any]]:
    """Counts with these labels; the database refuses None."""
    return [{"name": TallyName.JOBS, "label": name, "bucket": "", "number": 1, "amount": 1.0} for name in names]


def stored(database: Database) -> list[str]:
    with database.read() as unit:
        return sorted(unit.session.scalars(select(TALLIES.c.label)))


def test_what_several_statements_insert_is_there(database: Database) -> None:
    with database.write() as unit:
        with pipelined(unit.session):
            unit.session.execute(NEW, tallies("a", "b"))
            unit.session.execute(NEW, tallies("c"))
        assert sorted(unit.session.scalars(select(TALLIES.c.label))) == ["a", "b", "c"]
    assert stored(database) == ["a", "b", "c"]


@pytest.mark.parametrize("bad_first", [True, False])
def test_one_that_fails_fails_as_without_and_leaves_nothing(database: Database, bad_first: bool) -> None:
    def insert_some(name: str | None) -> None:
        with database.write() as unit, pipelined(unit.session):
            rows = [tallies(name, "x"), tallies("a", "b")]
            for batch in rows if bad_first else reversed(rows):
                unit.session.execute(NEW, batch)

    with pytest.raises(IntegrityError):
        insert_some(None)
    assert stored(database) == []
    insert_some("c")
    assert stored(database) == ["a", "b", "c", "x"]


def test_an_error_within_is_told_instead_of_what_follows_from_it(database: Database) -> None:
    def fail() -> None:
        with database.write() as unit, pipelined(unit.session):
            unit.session.execute(NEW, tallies("a", "b"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert stored(database) == []


@pytest.mark.parametrize("at_the_end", [True, False])
def test_a_lost_connection_is_known_as_lost_and_not_used_again(database: Database, at_the_end: bool) -> None:
    if database.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no connection to lose")
    count = 2 if at_the_end else 20_000  # of many rows the answers are read before the end

    def insert_without_connection() -> None:
        with database.write() as unit, database.engine.begin() as other:
            process = unit.session.scalar(text("SELECT pg_backend_pid()"))
            with pipelined(unit.session):
                other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": process})
                unit.session.execute(NEW, tallies(*(str(number) for number in range(count))))

    with pytest.raises(DBAPIError) as failure:
        insert_without_connection()
    assert isinstance(failure.value, OperationalError)
    assert failure.value.connection_invalidated
    assert stored(database) == []
