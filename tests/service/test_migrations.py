from __future__ import annotations

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from service.shared.db import engine as engines
from service.shared.db.migrate import alembic_config, open_engine, upgrade
from service.shared.db.models import Base
from service.shared.errors import SettingsError
from service.shared.settings import Settings
from tests.servers import fresh_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of an installation without a schema."""
    if request.param == "sqlite":
        yield Settings(data_dir=tmp_path / "not" / "there")
        return
    with fresh_database(request.getfixturevalue("postgres_server_url")) as url:
        yield Settings(data_dir=tmp_path, database_url=url)


def test_the_migrations_make_exactly_the_models(fresh: Settings) -> None:
    upgrade(fresh)
    upgrade(fresh)
    engine = open_engine(fresh)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_a_downgrade_leaves_nothing(fresh: Settings) -> None:
    upgrade(fresh)
    engine = open_engine(fresh)
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()
    upgrade(fresh)


def test_concurrent_upgrades_do_no_harm(fresh: Settings) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            upgrade(fresh)
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_an_upgrade_waits_for_another_as_long_as_that_takes(
    postgres_server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LOCK_TIMEOUT_S", 0.2)
    with fresh_database(postgres_server_url) as url:
        settings = Settings(data_dir=tmp_path, database_url=url)
        engine = open_engine(settings)
        with ThreadPoolExecutor() as threads, engine.begin() as connection:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7083251946)")
            second = threads.submit(upgrade, settings)
            time.sleep(1)
            assert not second.done()
            connection.rollback()
            second.result(30)
        engine.dispose()


def test_sqlite_is_set_up_to_keep_what_it_confirms(tmp_path: Path) -> None:
    engine = open_engine(Settings(data_dir=tmp_path / "d"))
    with engine.connect() as connection:
        values = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
        version = str(connection.execute(text("SELECT sqlite_version()")).scalar())
    engine.dispose()
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    assert engines._wal_is_safe(tuple(int(part) for part in version.split(".")))


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 0), True),
    ],
)
def test_versions_with_the_wal_reset_bug_are_known(version: tuple[int, ...], safe: bool) -> None:
    assert engines._wal_is_safe(version) is safe


def test_an_affected_sqlite_alone_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    monkeypatch.setitem(__import__("sys").modules, "pysqlite3", None)
    with pytest.raises(SettingsError, match="pysqlite3"):
        engines._sqlite_driver()


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "d")
    upgrade(settings)
    engine = open_engine(settings)
    reading = engine.execution_options(read_only=True)
    with engine.begin() as writer, reading.begin() as reader:
        writer.execute(text("UPDATE jobs SET priority = 1"))
        assert reader.execute(text("SELECT count(*) FROM jobs")).scalar() == 0
    engine.dispose()
