"""Migrations on databases that are full: nothing of what an older version knows is lost, in either direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, Table, select, text, update

from service.shared.db.migrate import alembic_config, open_engine, upgrade
from service.shared.db.models import Base, SchemaFloor
from service.shared.settings import Settings
from tests.everything import counts
from tests.operate.conftest import Installation, filled
from tests.servers import fresh_database
from tests.service.conftest import served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Rows = dict[str, list[dict[str, Any]]]

REVISIONS = [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()][::-1]


def go(engine: Engine, direction: str, revision: str) -> None:
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        getattr(command, direction)(config, revision)


def tables_of(engine: Engine) -> dict[str, Table]:
    found = MetaData()
    found.reflect(engine)
    return {table.name: table for table in found.sorted_tables if table.name != "alembic_version"}


def rows_of(engine: Engine, columns: dict[str, list[str]] | None = None) -> Rows:
    """Every row of every table (or of these columns of these), in the order of their keys."""
    tables = tables_of(engine)
    rows: Rows = {}
    with engine.connect() as connection:
        for name in columns or tables:
            table = tables[name]
            chosen = table.columns if columns is None else [table.c[column] for column in columns[name]]
            # By what identifies a row at any revision: idempotency keys had no project at first.
            order = [column for column in table.primary_key.columns if column.name != "project"]
            rows[name] = [dict(row) for row in connection.execute(select(*chosen).order_by(*order)).mappings()]
    return rows


def insert(engine: Engine, rows: Rows) -> dict[str, list[str]]:
    """Insert what tables of this revision have columns for, as plain SQL; which columns those are."""
    tables = {name: table for name, table in tables_of(engine).items() if name != SchemaFloor.__tablename__}
    known = {name: [c.name for c in table.columns if c.name in rows[name][0]] for name, table in tables.items()}
    with engine.begin() as connection:
        for name, table in tables.items():
            for row in rows[name]:
                values = {column: row[column] for column in known[name]}
                moves = _moves(name, values)
                connection.execute(table.insert().values(values | ({"state": moves[0]} if moves else {})))
                for state in moves[1:]:
                    connection.execute(update(table).where(table.c.id == row["id"]).values(state=state))
        if connection.dialect.name == "postgresql" and "tallies" in tables:  # the only ids that the database gives
            count_on = "SELECT setval(pg_get_serial_sequence('tallies', 'id'), (SELECT max(id) FROM tallies))"
            connection.exec_driver_sql(count_on)
    return known


def _moves(name: str, values: dict[str, Any]) -> list[str]:
    """The states through which the database lets a row come into its own."""
    if "state" not in values:
        return []
    path = ["processing", values["state"]] if name == "datasets" else ["queued", "running", values["state"]]
    return path[: path.index(values["state"]) + 1]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        with filled(Settings(data_dir=folder / "data"), folder) as installation:
            yield installation
        return
    with (
        fresh_database(request.getfixturevalue("postgres_server_url")) as url,
        filled(Settings(data_dir=folder / "data", database_url=url), folder) as installation,
    ):
        yield installation


@pytest.fixture
def empty_database(source: Installation, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of another database of the same kind, without a schema, on the same storage."""
    settings = source.settings
    if settings.database_url.startswith("sqlite"):
        url = f"sqlite:///{tmp_path}/other.db"
        yield settings.model_copy(update={"database_url": url})
        return
    with fresh_database(request.getfixturevalue("postgres_server_url")) as url:
        yield settings.model_copy(update={"database_url": url})


@pytest.fixture
def engine(empty_database: Settings) -> Iterator[Engine]:
    engine = open_engine(empty_database)
    yield engine
    engine.dispose()


def test_there_is_something_in_every_table(source: Installation) -> None:
    assert set(counts(source.database)) == set(Base.metadata.tables)
    assert [name for name, count in counts(source.database).items() if count == 0] == []


def test_downgrades_keep_what_the_older_version_knows(
    source: Installation, empty_database: Settings, engine: Engine
) -> None:
    upgrade(empty_database)
    insert(engine, rows_of(source.database.engine))
    full = rows_of(engine)
    assert {name: len(rows) for name, rows in full.items()} == counts(source.database)
    for revision in REVISIONS[-2::-1]:
        before = rows_of(engine)
        go(engine, "downgrade", revision)
        columns = {name: [column.name for column in table.columns] for name, table in tables_of(engine).items()}
        assert set(columns) <= set(before)
        for name, rows in rows_of(engine).items():
            kept = [{column: row[column] for column in columns[name] if column in row} for row in before[name]]
            assert [{c: row[c] for c in kept[0]} for row in rows] == kept, (revision, name)
    go(engine, "upgrade", "head")
    again = rows_of(engine)
    for name in tables_of(engine):
        ids = [[row[key] for key in row if key in ("id", "job_id", "seq", "step")] for row in again[name]]
        if ids:
            assert ids == [[row[key] for key in row if key in ("id", "job_id", "seq", "step")] for row in full[name]]
    go(engine, "downgrade", "base")
    assert tables_of(engine) == {}


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_full_database_of_every_earlier_version_comes_to_this_one(
    source: Installation, empty_database: Settings, engine: Engine, revision: str
) -> None:
    go(engine, "upgrade", revision)
    columns = insert(engine, rows_of(source.database.engine))
    before = rows_of(engine, columns)
    assert all(before.values())
    upgrade(empty_database)
    assert rows_of(engine, columns) == before
    labels = rows_of(engine)["job_labels"]
    assert {(row["key"], row["value"]) for row in labels} == {("", "night"), ("ticket", "A-1")}
    assert all(row["created_at"] for row in labels)
    with served(empty_database) as api:
        for path, table in (("jobs", "jobs"), ("datasets", "datasets"), ("models", "models")):
            listed = api.client.get(f"/v1/{path}", params={"limit": 100}).raise_for_status().json()["data"]
            assert {each["id"] for each in listed} == {row["id"] for row in before.get(table, [])}
            for each in listed:
                assert api.client.get(f"/v1/{path}/{each['id']}").raise_for_status().json()["id"] == each["id"]
        events = f"/v1/jobs/{source.running_job}/events"
        assert len(api.client.get(events).raise_for_status().json()["data"]) > 2
        with api.database.write() as unit:
            claimed = unit.jobs.claim("w-2")  # the sweep's, which was queued
            assert claimed is not None
            assert claimed.attempt == 1


def test_projects_are_taken_over_from_jobs(source: Installation, empty_database: Settings, engine: Engine) -> None:
    go(engine, "upgrade", "0008")
    rows = rows_of(source.database.engine)
    for job in rows["jobs"]:
        job["project"] = "pallets"
    insert(engine, rows)
    upgrade(empty_database)
    found = rows_of(engine)
    for table in ("models", "predictions"):
        assert {row["project"] for row in found[table]} == {"pallets"}
    assert {row["project"] for row in found["datasets"]} == {"default"}
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM api_keys")).scalar() == 0
