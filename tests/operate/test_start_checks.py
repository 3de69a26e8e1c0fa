"""What keeps a process from starting, and what does not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from sqlalchemy import text
from typer.testing import CliRunner

from service.cli import app
from service.shared import checks
from service.shared.checks import Level
from service.shared.db.engine import create_engine
from service.shared.db.migrate import alembic_config, upgrade
from service.shared.errors import SettingsError
from service.shared.settings import Settings
from tests.operate.conftest import set_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def refusal(settings: Settings) -> str:
    with pytest.raises(SettingsError) as caught:
        checks.require(settings, checks.data_dir, checks.database)
    return caught.value.message


def test_a_database_without_a_schema_is_refused_and_not_made(fresh: Settings) -> None:
    assert refusal(fresh).startswith("the database has no schema yet: run `sam3-service migrate`")
    assert not fresh.data_dir.exists()


def test_an_older_schema_is_refused_and_a_newer_one_is_not(fresh: Settings) -> None:
    upgrade(fresh)
    checks.require(fresh, checks.data_dir, checks.database)
    engine = create_engine(fresh.database_url)
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    engine.dispose()
    assert refusal(fresh).startswith("the schema is older than this version: run `sam3-service migrate`")
    upgrade(fresh)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    checks.require(fresh, checks.database)
    (found,) = [each for each in checks.database(fresh) if each.level is Level.WARNING]
    assert found.message == "the schema is newer than this version"
    with engine.begin() as connection:
        connection.execute(text("UPDATE schema_floor SET revision = '9998'"))
    engine.dispose()
    assert refusal(fresh) == "this version is too old for the schema: update this process"


def test_every_fault_is_a_line_and_the_status_is_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        set_environment(monkeypatch, data_dir=tmp_path / "file", database_url=f"sqlite:///{tmp_path}/d.db", port=port)
        result = CliRunner().invoke(app, ["api"])
    assert result.exit_code == 2
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == [
        f"{tmp_path / 'file'} is not a folder",
        "the database has no schema yet",
        f"cannot listen on 127.0.0.1 port {port}",
    ]


def test_the_reconciler_does_not_start_without_a_schema(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.reconciler"],
        env=os.environ | {"SAM3_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("the database has no schema yet: run")


def test_a_database_that_is_away_refuses_no_start(tmp_path: Path) -> None:
    away = Settings(data_dir=tmp_path, database_url=f"postgresql://u:hunter22@/d?host={tmp_path}")
    checks.require(away, checks.database)
    (found,) = checks.database(away)
    assert (found.level, found.may_pass) == (Level.FAULT, True)
    assert "does not answer" in found.message


def test_what_only_an_operator_can_put_right_is_refused(postgres_server_url: str, tmp_path: Path) -> None:
    head, _, query = postgres_server_url.partition("?")
    missing = Settings(data_dir=tmp_path, database_url=f"{head.rsplit('/', 1)[0]}/nowhere?{query}")
    assert "create the database that SAM3_DATABASE_URL names" in refusal(missing)
    stranger = Settings(data_dir=tmp_path, database_url=postgres_server_url.replace("postgres@", "stranger@"))
    assert "create the role that SAM3_DATABASE_URL names" in refusal(stranger)


def test_an_old_postgresql_is_refused(
    postgres_server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "OLDEST_POSTGRESQL", 99)
    settings = Settings(data_dir=tmp_path, database_url=postgres_server_url)
    assert "is too old: upgrade it to 99 or later" in refusal(settings)


@contextmanager
def listener(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Port of a server that answers each connection so."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_pgbouncer_is_named(tmp_path: Path) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(4096)
        fields = b"SFATAL\x00C08P01\x00Munsupported startup parameter: options\x00\x00"
        connection.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)

    with listener(refuse) as port:
        url = f"postgresql://u:hunter22@127.0.0.1:{port}/d?sslmode=disable&gssencmode=disable"
        said = refusal(Settings(data_dir=tmp_path, database_url=url))
    assert "SAM3_DATABASE_POOLER=true" in said
    assert "hunter22" not in said


def test_a_damaged_sqlite_file_is_refused(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    (tmp_path / "service.db").write_bytes(b"no database at all" * 1000)
    assert "the database is damaged (file is not a database): restore it from a backup" in refusal(settings)


def test_sqlite_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"30 22 0:40 / {tmp_path.parent} rw shared:1 - ext4 /dev/sdb rw\n"
        f"31 22 0:41 / {tmp_path}/shared\\040disk rw shared:1 - nfs4 server:/export rw\n"
    )
    monkeypatch.setattr(checks, "MOUNTS", mounts)
    checks.require(Settings(data_dir=tmp_path), checks.data_dir)
    remote = Settings(data_dir=tmp_path / "shared disk" / "data")
    (tmp_path / "shared disk").mkdir()
    assert "is on a network file system (nfs4), which would damage SQLite: use a local disk" in refusal(remote)
    elsewhere = Settings(data_dir=tmp_path / "shared disk", database_url=f"sqlite:///{tmp_path}/local.db")
    assert refusal(elsewhere).startswith("the database has no schema yet")


def test_an_affected_sqlite_is_refused_beside_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    monkeypatch.setitem(sys.modules, "pysqlite3", None)
    (tmp_path / "file").touch()
    said = refusal(Settings(data_dir=tmp_path / "file", database_url=f"sqlite:///{tmp_path}/d.db")).splitlines()
    assert len(said) == 2
    assert "WAL-reset bug" in said[1]
    assert "install pysqlite3" in said[1]
