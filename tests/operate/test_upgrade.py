"""Versions side by side: this one with the schema of the next, and processes restarted one by one under load."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, func, inspect, select, text
from typer.testing import CliRunner, Result

from service.cli import app
from service.shared import checks
from service.shared.clock import SystemClock
from service.shared.db.migrate import alembic_config, open_engine, upgrade
from service.shared.db.models import IdempotencyKey, Job
from service.shared.settings import Settings
from service.shared.unit_of_work import Database
from tests.everything import fill
from tests.operate.conftest import set_environment
from tests.servers import free_port, fresh_database
from tests.service.conftest import FakeQueue, add_dataset, body, served
from tests.service.webhooks import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEXT = (
    "ALTER TABLE jobs ADD COLUMN colour VARCHAR(20)",
    "ALTER TABLE jobs ADD COLUMN cost INTEGER DEFAULT 0 NOT NULL",
    "ALTER TABLE attempts ADD COLUMN cost INTEGER DEFAULT 0 NOT NULL",
    "ALTER TABLE metric_points ADD COLUMN unit VARCHAR(20)",
    "CREATE TABLE budgets (id VARCHAR(48) PRIMARY KEY, job_id VARCHAR(48) REFERENCES jobs (id) ON DELETE CASCADE)",
    "CREATE INDEX ix_jobs_colour ON jobs (colour)",
    "UPDATE alembic_version SET version_num = '9999'",
)
"""A migration of the version after this one, as such are allowed to be."""
Shape = dict[str, dict[str, tuple[bool, bool]]]
FIRST_WITH_FLOOR = "0014"


def test_this_version_works_with_the_schema_of_the_next(fresh: Settings, tmp_path: Path) -> None:
    settings = fresh.model_copy(update={"secret_key": KEY})
    upgrade(settings)
    engine = open_engine(settings)
    with engine.begin() as connection:
        for statement in NEXT:
            connection.execute(text(statement))
    engine.dispose()
    checks.require(settings, checks.database)
    with served(settings) as api:
        assert api.client.get("/readyz").json()["checks"]["database"] == "ok"
        job = fill(api.database, api.settings, api.storage, tmp_path)  # all that API and workers write
        dataset_id = api.client.get(f"/v1/jobs/{job}").raise_for_status().json()["dataset_id"]
        made = api.client.post("/v1/jobs", json=body(dataset_id=dataset_id)).raise_for_status().json()
        assert api.client.get(f"/v1/jobs/{made['id']}").json()["status"] == "queued"
        assert api.client.get(f"/v1/jobs/{job}/metrics").raise_for_status().json()["series"]
        for path in (f"jobs/{job}/events", "jobs", "models", "datasets", "comparisons"):
            assert api.client.get(f"/v1/{path}").raise_for_status().json()["data"]
        assert api.client.post(f"/v1/jobs/{made['id']}/cancel").status_code == 202


def test_migrate_leaves_a_newer_schema_as_it_is_and_refuses_one_that_left_it_behind(
    fresh: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def migrate() -> Result:
        return CliRunner().invoke(app, ["migrate"])

    set_environment(monkeypatch, data_dir=fresh.data_dir, database_url=fresh.database_url)
    assert migrate().exit_code == 0
    engine = open_engine(fresh)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert migrate().exit_code == 0
    with engine.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
        connection.execute(text("UPDATE schema_floor SET revision = '9998'"))
    engine.dispose()
    result = migrate()
    assert (result.exit_code, "too old for the schema" in result.stderr) == (2, True)


def test_migrations_that_take_something_away_raise_the_floor(tmp_path: Path) -> None:
    engine = open_engine(Settings(data_dir=tmp_path / "data"))
    scripts = list(ScriptDirectory.from_config(alembic_config()).walk_revisions())[::-1]
    shapes: dict[str, Shape] = {}
    floors: dict[str, str] = {}
    for script in scripts:
        _go(engine, script.revision)
        shapes[script.revision] = shape(engine)
        if script.revision >= FIRST_WITH_FLOOR:
            with engine.connect() as connection:
                floors[script.revision] = str(connection.execute(text("SELECT revision FROM schema_floor")).scalar())
    engine.dispose()
    for earlier, later in itertools.pairwise(shapes):
        if later > FIRST_WITH_FLOOR and contracts(shapes[earlier], shapes[later]):
            assert floors[later] == later, contracts(shapes[earlier], shapes[later])
    # What it finds where there was no such rule yet:
    assert contracts(shapes["0005"], shapes["0006"]) == ["job_labels.created_at must be written"]
    assert contracts(shapes["0010"], shapes["0009"]) == ["webhook_deliveries is gone", "webhook_endpoints is gone"]
    assert contracts(shapes["0007"], shapes["0006"]) == ["jobs.gpus is gone", "workers.gpus is gone"]
    assert contracts(shapes["0009"], shapes["0010"]) == []


def _go(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def shape(engine: Engine) -> Shape:
    """By table and column: whether it may be null, whether the database fills it in."""
    found = inspect(engine)
    return {
        table: {c["name"]: (bool(c["nullable"]), c["default"] is not None) for c in found.get_columns(table)}
        for table in found.get_table_names()
        if table != "alembic_version"
    }


def contracts(earlier: Shape, later: Shape) -> list[str]:
    """What a version of the earlier schema would miss, or not know to write, in the later one."""
    gone = [f"{table} is gone" for table in sorted(earlier.keys() - later.keys())]
    for table in sorted(earlier.keys() & later.keys()):
        gone += [f"{table}.{column} is gone" for column in sorted(earlier[table].keys() - later[table].keys())]
        for column, (may_be_null, is_filled) in later[table].items():
            before_null, before_filled = earlier[table].get(column, (True, True))
            if not (may_be_null or is_filled) and (before_null or before_filled):
                gone.append(f"{table}.{column} must be written")
    return gone


class Processes:
    """Two API processes and a reconciler on one installation, restarted at will."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.ports = [free_port(), free_port()]
        self._environment = environment
        self._log = (folder / "log").open("ab")
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for number in (0, 1):
            self._start_api(number)
        self._start("reconciler", ["service.reconciler"])

    def restart(self, name: str) -> None:
        self._stop(name)
        if name == "reconciler":
            self._start(name, ["service.reconciler"])
        else:
            self._start_api(int(name.removeprefix("api-")))

    def close(self) -> None:
        for name in list(self._running):
            self._stop(name)
        self._log.close()

    def _start_api(self, number: int) -> None:
        self._start(f"api-{number}", ["service.cli", "api"], SAM3_PORT=str(self.ports[number]))
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.ports[number]}/readyz").status_code == 200:
                    return
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def _start(self, name: str, module: list[str], **variables: str) -> None:
        environment = self._environment | variables
        command = [sys.executable, "-m", *module]
        self._running[name] = subprocess.Popen(command, env=environment, stdout=self._log, stderr=self._log)

    def _stop(self, name: str) -> None:
        process = self._running.pop(name)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)


@pytest.fixture
def processes(postgres_server_url: str, redis_url: str, tmp_path: Path) -> Iterator[tuple[Processes, Settings]]:
    with fresh_database(postgres_server_url) as url:
        settings = Settings(data_dir=tmp_path / "data", database_url=url, broker_url=redis_url)
        upgrade(settings)
        names = {"data_dir": settings.data_dir, "database_url": url, "broker_url": redis_url}
        found = Processes(tmp_path, os.environ | {f"SAM3_{name.upper()}": str(value) for name, value in names.items()})
        yield found, settings
        found.close()


def test_restarts_one_by_one_under_load_lose_and_double_nothing(processes: tuple[Processes, Settings]) -> None:
    running, settings = processes
    database = Database(settings, SystemClock(), FakeQueue())
    dataset_id = add_dataset(database)
    stop = threading.Event()
    made: dict[str, str] = {}
    failures: list[str] = []

    def create(worker: int) -> None:
        """Jobs one after the other; each is asked for until somebody says what became of it."""
        ports = itertools.cycle(running.ports)
        with httpx.Client(timeout=20) as client:
            for number in itertools.count():
                if stop.is_set():
                    return
                key = f"{worker}-{number}"
                made[key] = _create(client, ports, key, dataset_id, failures)

    threads = [threading.Thread(target=create, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for name in ("api-0", "reconciler", "api-1"):
        running.restart(name)
    stop.set()
    for thread in threads:
        thread.join()
    with database.read() as unit:
        jobs = set(unit.session.scalars(select(Job.id)))
        keys = unit.session.execute(select(func.count()).select_from(IdempotencyKey)).scalar_one()
    database.close()
    assert len(made) > 50
    assert len(set(made.values())) == len(made) == keys
    assert set(made.values()) == jobs
    assert failures, "no request met a process that was not there: nothing was tried"


def _create(client: httpx.Client, ports: Any, key: str, dataset_id: str, failures: list[str]) -> str:
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        try:
            url = f"http://127.0.0.1:{next(ports)}/v1/jobs"
            answer = client.post(url, json=body(dataset_id=dataset_id), headers={"Idempotency-Key": key})
        except httpx.HTTPError as error:
            failures.append(type(error).__name__)
            continue
        if answer.status_code == 201:
            return str(answer.json()["id"])
        assert answer.status_code in (409, 429, 503), answer.text
        time.sleep(0.05)
