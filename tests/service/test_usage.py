"""Usage: what was used is told by day, month and project, and stays told when the jobs are gone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import event, text

from service.shared.db.migrate import alembic_config, open_engine, upgrade
from service.shared.db.repositories.attempts import Lease
from service.shared.db.repositories.usage import days_of
from service.shared.settings import Settings
from service.shared.states import Actor, DatasetState, JobState
from service.usecases.access import Scope
from tests.servers import fresh_database
from tests.service.conftest import Api, FakeClock, add_dataset, add_job, assert_problem, served
from tests.service.test_access import client, key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.shared.unit_of_work import Database

DAY_S = 86400


@pytest.fixture
def fresh(settings: Settings) -> Iterator[Api]:
    """The application on each database."""
    with served(settings) as api:
        yield api


def ran(database: Database, clock: FakeClock, seconds: float, outcome: JobState, **values: Any) -> str:
    """Id of a job that took so long."""
    job_id = add_job(database, **values)
    with database.write() as unit:
        job = unit.jobs.claim("w-1", "GPU", gpus=16)
    assert job is not None
    assert job.id == job_id
    clock.advance(seconds)
    with database.write() as unit:
        unit.attempts.finish(job.id, job.epoch, outcome, error={"code": "x"} if outcome is JobState.FAILED else None)
    return job_id


def usage(api: Api, **query: str) -> dict[str, Any]:
    answer = api.client.get("/v1/usage", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def jobs(succeeded: int = 0, failed: int = 0, cancelled: int = 0) -> dict[str, int]:
    return {"succeeded": succeeded, "failed": failed, "cancelled": cancelled}


def test_usage_is_told_by_day_month_and_project(fresh: Api) -> None:
    database, clock = fresh.database, fresh.clock
    ran(database, clock, 100, JobState.SUCCEEDED, project="a")
    ran(database, clock, 10, JobState.FAILED, project="a", gpus=3)
    clock.advance(DAY_S)
    ran(database, clock, 7, JobState.SUCCEEDED, project="b")
    with database.write() as unit:
        unit.jobs.move(add_job(database, project="b"), JobState.CANCELLED, Actor.API)  # never ran
    found = usage(fresh)
    assert (found["first_day"], found["last_day"]) == ("2026-01-01", "2026-01-02")
    assert found["total"] == {"start": None, "project": None, "gpu_seconds": 137, "jobs": jobs(2, 1, 1)}
    assert [(each["start"], each["gpu_seconds"], each["jobs"]) for each in found["data"]] == [
        ("2026-01-01", 130, jobs(1, 1)),
        ("2026-01-02", 7, jobs(1, 0, 1)),
    ]
    by_project = usage(fresh, group_by="project")["data"]
    assert [(each["project"], each["start"], each["gpu_seconds"]) for each in by_project] == [
        ("a", None, 130),
        ("b", None, 7),
    ]
    of_b = usage(fresh, project="b", group_by="month")
    assert [(each["start"], each["project"], each["gpu_seconds"]) for each in of_b["data"]] == [("2026-01-01", "b", 7)]
    assert of_b["stored_bytes"] == 0
    assert usage(fresh, **{"from": "2026-01-02", "to": "2026-01-02"})["total"]["gpu_seconds"] == 7
    assert usage(fresh, **{"from": "2025-01-01", "to": "2025-12-31"})["data"] == []


def test_an_attempt_is_split_at_midnight_and_months_end(fresh: Api) -> None:
    fresh.clock.advance(31 * DAY_S - 50)
    ran(fresh.database, fresh.clock, 50 + DAY_S + 20, JobState.SUCCEEDED, gpus=2)
    query = {"from": "2026-01-01", "to": "2026-02-28"}
    by_day = usage(fresh, **query)["data"]
    assert [(each["start"], each["gpu_seconds"]) for each in by_day] == [
        ("2026-01-31", 100),
        ("2026-02-01", 2 * DAY_S),
        ("2026-02-02", 40),
    ]
    by_month = usage(fresh, group_by="month", **query)["data"]
    assert [(each["start"], each["gpu_seconds"], each["jobs"]) for each in by_month] == [
        ("2026-01-01", 100, jobs()),
        ("2026-02-01", 2 * DAY_S + 40, jobs(1)),
    ]
    assert fresh.client.get("/v1/quota").json()["gpu_seconds"]["used"] == 2 * DAY_S + 40


def test_what_runs_counts_up_to_its_last_heartbeat_and_never_goes_back(fresh: Api) -> None:
    database, clock = fresh.database, fresh.clock
    job_id = add_job(database, gpus=2)

    def told() -> list[float]:
        job = fresh.client.get(f"/v1/jobs/{job_id}").json()["usage"]["gpu_seconds"]
        return [job, usage(fresh)["total"]["gpu_seconds"], fresh.client.get("/v1/quota").json()["gpu_seconds"]["used"]]

    with database.write() as unit:
        job = unit.jobs.claim("w-1", "GPU", gpus=2)
    assert job is not None
    assert told() == [0, 0, 0]
    clock.advance(5)
    with database.write() as unit:
        unit.attempts.heartbeat(job_id, job.epoch)
    assert told() == [10, 10, 10]
    clock.advance(60)  # lost since
    assert told() == [10, 10, 10]
    with database.write() as unit:
        unit.attempts.reap(Lease(job_id, job.epoch, 1))
    assert told() == [10, 10, 10]
    clock.advance(1000)
    with database.write() as unit:
        again = unit.jobs.claim("w-2", "GPU", gpus=2)
    assert again is not None
    clock.advance(3)
    with database.write() as unit:
        unit.attempts.finish(job_id, again.epoch, JobState.QUEUED)  # a drain
    assert told() == [16, 16, 16]


def test_deleting_a_job_gives_nothing_back(fresh: Api) -> None:
    job_id = ran(fresh.database, fresh.clock, 42, JobState.SUCCEEDED)
    before = usage(fresh)
    assert fresh.client.delete(f"/v1/jobs/{job_id}").status_code == 204
    with fresh.database.write() as unit:
        unit.jobs.purge(job_id, limit=1000)
    assert usage(fresh) == before
    assert before["total"]["gpu_seconds"] == 42


def test_jobs_that_fail_with_their_dataset_are_counted(database: Database) -> None:
    dataset = add_dataset(database, DatasetState.PROCESSING)
    for _ in range(3):
        add_job(database, dataset, state=JobState.VALIDATING_FILES)
    with database.write() as unit:
        unit.jobs.release_waiting(dataset, valid=False)
        [ended] = unit.usage.ended(date(2026, 1, 1), date(2026, 1, 1))
    assert (ended.outcome, ended.jobs) == (JobState.FAILED, 3)


def test_a_project_sees_its_own_usage_alone(settings: Settings) -> None:
    with served(settings.model_copy(update={"require_keys": True})) as api:
        ran(api.database, api.clock, 10, JobState.SUCCEEDED, project="ours")
        ran(api.database, api.clock, 99, JobState.SUCCEEDED, project="theirs")
        add_job(api.database, project="theirs")
        with api.database.write() as unit:
            held = unit.jobs.claim("w-1", "GPU", gpus=1)
        assert held is not None
        api.clock.advance(5)
        with api.database.write() as unit:
            unit.attempts.heartbeat(held.id, held.epoch)
        with client(api, key(api, "ours", Scope.READ)) as ours:
            for group_by in ("day", "project"):
                found = ours.get("/v1/usage", params={"group_by": group_by}).json()
                assert found["total"] == {"start": None, "project": "ours", "gpu_seconds": 10, "jobs": jobs(1)}
                assert [each["project"] for each in found["data"]] == ["ours"]
                assert found["stored_bytes"] == 0
        with client(api, key(api, None, Scope.ADMIN)) as admin:
            found = admin.get("/v1/usage", params={"group_by": "project"}).json()
            assert [(each["project"], each["gpu_seconds"]) for each in found["data"]] == [("ours", 10), ("theirs", 104)]
            assert found["stored_bytes"] is None
        with client(api, key(api, "ours", Scope.PREDICT)) as weak:
            assert_problem(weak.get("/v1/usage"), 403, "insufficient_scope")
            assert_problem(weak.get("/v1/quota"), 403, "insufficient_scope")


@pytest.mark.parametrize(
    "query",
    [
        "from=2026-01-02&to=2026-01-01",
        "from=2020-01-01&to=2026-01-01",
        "from=0001-01-01",
        "from=0",
        "from=1767225600",
        "from=2026-1-1",
        "from=2026-02-30",
        "from=2026-01-01T00:00:00Z",
        "from=-2026-01-01",
        "from=%00",
        "from=%D9%A2%D9%A0%D9%A2%D9%A6-%D9%A0%D9%A1-%D9%A0%D9%A1",
        "to=10000-01-01",
        "group_by=job",
        "project=a%20b",
        "since=2026-01-01",
    ],
)
def test_a_time_that_cannot_be_told_of_is_refused(api: Api, query: str) -> None:
    assert_problem(api.client.get(f"/v1/usage?{query}"), 422, "invalid_request")


@pytest.mark.parametrize(
    "query", ["to=9999-12-31&from=9999-12-31", "to=0001-01-01", "from=2026-12-01", "to=2020-05-05"]
)
def test_any_day_can_be_asked_for(api: Api, query: str) -> None:
    found = api.client.get(f"/v1/usage?{query}")
    assert found.status_code == 200
    assert found.json()["data"] == []


def test_usage_takes_the_same_statements_however_much_there_is(fresh: Api) -> None:
    counts = []
    for number in (1, 6):
        for _ in range(number):
            ran(fresh.database, fresh.clock, DAY_S / 2, JobState.SUCCEEDED, project=f"p{number}")
        seen: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            seen.append(statement)  # noqa: B023 - used at once

        event.listen(fresh.database.engine, "before_cursor_execute", note)
        try:
            usage(fresh)
            fresh.client.get("/v1/quota")
        finally:
            event.remove(fresh.database.engine, "before_cursor_execute", note)
        counts.append(len(seen))
    assert counts[0] == counts[1] <= 12


def test_days_add_up() -> None:
    start = datetime(2026, 3, 1, 23, 59, 59, 500_000, UTC)
    for seconds in (0.25, 0.5, 1, DAY_S, 40 * DAY_S + 1):
        parts = list(days_of(start, start + timedelta(seconds=seconds)))
        assert sum(part for _, part in parts) == pytest.approx(seconds)
        assert len({day for day, _ in parts}) == len(parts)
    assert list(days_of(start, start)) == list(days_of(start, start - timedelta(seconds=1))) == []


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_was_used_before_the_record_is_carried_over(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "sqlite":
        carry_over(Settings(data_dir=tmp_path))
        return
    with fresh_database(request.getfixturevalue("postgres_server_url")) as url:
        carry_over(Settings(data_dir=tmp_path, database_url=url))


def carry_over(settings: Settings) -> None:
    upgrade(settings)
    with served(settings) as api:
        ran(api.database, api.clock, 90.5, JobState.SUCCEEDED, project="a", gpus=2)
        add_job(api.database, project="a")
        with api.database.write() as unit:
            held = unit.jobs.claim("w-1", "GPU", gpus=1)
        assert held is not None
        api.clock.advance(4)
        with api.database.write() as unit:
            unit.attempts.heartbeat(held.id, held.epoch)
        before, job = usage(api), api.client.get(f"/v1/jobs/{held.id}").json()["usage"]
    assert before["total"] == {"start": None, "project": None, "gpu_seconds": 185, "jobs": jobs(1)}
    engine = open_engine(settings)
    with engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, _before_the_record(config))
        assert connection.execute(text("SELECT count(*) FROM attempts")).scalar() == 2
    engine.dispose()
    upgrade(settings)
    with served(settings) as api:
        found = usage(api, **{"from": "2026-01-01", "to": "2026-01-01"})
        assert found["total"]["gpu_seconds"] == pytest.approx(185, abs=0.01)
        assert found["total"]["jobs"] == before["total"]["jobs"]
        assert api.client.get(f"/v1/jobs/{held.id}").json()["usage"] == job


def _before_the_record(config: Any) -> str:
    revision = ScriptDirectory.from_config(config).get_revision("0013")
    assert revision is not None
    return str(revision.down_revision)
