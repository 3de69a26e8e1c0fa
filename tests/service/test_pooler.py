"""Behind PgBouncer in transaction mode: many processes' worth of clients on a handful of connections."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import pytest
from sqlalchemy import text

from service.shared.clock import SystemClock
from service.shared.db.migrate import open_engine, upgrade
from service.shared.settings import Settings
from service.shared.states import JobState
from service.shared.unit_of_work import Database
from tests.servers import pooled, postgres_url  # noqa: F401
from tests.service.conftest import FakeQueue, add_dataset, new_job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psycopg

CONNECTIONS, PROCESSES, JOBS = 4, 12, 60


def test_nothing_is_kept_on_a_connection(tmp_path: Path, postgres_url: str) -> None:  # noqa: F811
    """What PgBouncer would refuse or lose, also where none is at hand to show it."""
    for pooler in (True, False):
        engine = open_engine(Settings(data_dir=tmp_path, database_url=postgres_url, database_pooler=pooler))
        with engine.connect() as connection:
            assert connection.execute(text("SHOW lock_timeout")).scalar() == "10s"
            driven = cast("psycopg.Connection[object]", connection.connection.driver_connection)
            assert ("options" in driven.info.get_parameters()) is not pooler
            assert (driven.prepare_threshold is None) is pooler
        engine.dispose()


@pytest.fixture
def settings(tmp_path: Path, postgres_url: str) -> Iterator[Settings]:  # noqa: F811
    with pooled(postgres_url, CONNECTIONS) as url:
        yield Settings(data_dir=tmp_path, database_url=url, database_pooler=True)


def test_jobs_go_from_creation_to_their_end(settings: Settings) -> None:
    upgrade(settings)
    processes = [Database(settings, SystemClock(), FakeQueue()) for _ in range(PROCESSES)]
    dataset_id = add_dataset(processes[0])

    def live(number: int) -> str | None:
        database = processes[number % PROCESSES]
        with database.write() as unit:
            unit.jobs.add(new_job(dataset_id))
        with database.write() as unit:
            job = unit.jobs.claim(f"worker-{number}", "GPU", gpus=1)
        if job is None:
            return None
        with database.write() as unit:
            unit.attempts.heartbeat(job.id, job.epoch)
        with database.write() as unit:
            unit.attempts.finish(job.id, job.epoch, JobState.SUCCEEDED, result={"steps": 1})
        return job.id

    with ThreadPoolExecutor(2 * PROCESSES) as threads:
        ended = list(threads.map(live, range(JOBS)))
    assert len(set(ended)) == JOBS
    with processes[0].read() as unit:
        states = [job.state for job in unit.jobs.list(limit=100)[0]]
        of_service = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        used = unit.session.scalar(text(of_service))
        patience = unit.session.scalar(text("SHOW lock_timeout"))
    assert states == [JobState.SUCCEEDED] * JOBS
    assert used is not None
    assert used <= CONNECTIONS
    assert patience == "10s"
    for database in processes:
        database.close()
