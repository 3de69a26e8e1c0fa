"""Quotas: what a project may use is refused or waits, exactly at the limit, whoever asks at the same time."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, update

from service.api.job_creation import JobCreation
from service.shared.db.migrate import upgrade as migrate
from service.shared.db.models import Dataset
from service.shared.db.repositories.events import NewEvent
from service.shared.db.repositories.quotas import Limits
from service.shared.errors import QuotaExceededError
from service.shared.settings import Settings
from service.shared.states import Actor, DatasetState, JobState
from service.shared.unit_of_work import Database
from service.usecases.access import Scope
from service.usecases.idempotency import Answer
from service.usecases.queue import places
from service.usecases.quotas import quota_of
from service.usecases.retries import retry_job
from service.usecases.uploads import UploadSpec, create_upload
from tests.service.conftest import Api, FakeClock, FakeQueue, add_dataset, add_job, assert_problem, body, served, upload
from tests.service.results import add_model
from tests.service.test_access import client, key
from tests.service.test_jobs_created_together import wanted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

    from service.shared.db.models import Job


@pytest.fixture
def limited(settings: Settings) -> Iterator[Api]:
    """The application on each database, asking for keys."""
    with served(settings.model_copy(update={"require_keys": True})) as api:
        yield api


@pytest.fixture
def admin(limited: Api) -> Iterator[httpx.Client]:
    with client(limited, key(limited, None, Scope.ADMIN)) as found:
        yield found


@pytest.fixture
def ours(limited: Api) -> Iterator[httpx.Client]:
    with client(limited, key(limited, "ours")) as found:
        yield found


def limit(database: Database, project: str = "default", **limits: int) -> None:
    with database.write() as unit:
        unit.quotas.set(project, Limits(**limits))


def refusal(response: httpx.Response, code: str) -> dict[str, Any]:
    problem = assert_problem(response, 403, "quota_exceeded")
    assert problem["errors"][0]["code"] == code
    assert response.headers["x-should-retry"] == "false"
    return problem


def claim(database: Database, gpus: int = 1) -> Job | None:
    with database.write() as unit:
        return unit.jobs.claim("w-1", "GPU", gpus=gpus)


def test_a_quota_is_set_seen_and_taken_away(limited: Api, admin: httpx.Client, ours: httpx.Client) -> None:
    limits = {"max_active_jobs": 2, "max_stored_bytes": 10**12}
    put = admin.put("/v1/quotas/ours", json=limits)
    assert put.status_code == 200
    everything = {
        "max_active_jobs": 2,
        "max_running_gpus": None,
        "max_gpu_seconds_per_month": None,
        "max_stored_bytes": 10**12,
        "max_datasets": None,
    }
    assert put.json()["limits"] == everything
    listed = admin.get("/v1/quotas").json()
    assert [(each["project"], each["limits"]) for each in listed["data"]] == [("ours", everything)]
    assert set(listed["default"].values()) == {None}
    add_job(limited.database, project="ours")
    seen = ours.get("/v1/quota").json()
    assert seen["project"] == "ours"
    assert seen["active_jobs"] == {"limit": 2, "used": 1, "remaining": 1, "resets_at": None}
    assert seen["running_gpus"] == {"limit": None, "used": 0, "remaining": None, "resets_at": None}
    assert datetime.fromisoformat(seen["gpu_seconds"]["resets_at"]).isoformat() == "2026-02-01T00:00:00+00:00"
    assert admin.get("/v1/quota", params={"project": "ours"}).json() == seen
    assert admin.put("/v1/quotas/ours", json={"max_datasets": 1}).json()["limits"]["max_active_jobs"] is None
    assert admin.delete("/v1/quotas/ours").status_code == 204
    assert admin.delete("/v1/quotas/ours").status_code == 204
    assert admin.get("/v1/quotas").json()["data"] == []
    assert ours.get("/v1/quota").json()["active_jobs"]["limit"] is None


def test_quotas_are_the_operators(ours: httpx.Client) -> None:
    for method, path, extra in (
        ("GET", "/v1/quotas", {}),
        ("PUT", "/v1/quotas/ours", {"json": {}}),
        ("PUT", "/v1/quotas/theirs", {"json": {}}),
        ("DELETE", "/v1/quotas/ours", {}),
    ):
        assert_problem(ours.request(method, path, **extra), 403, "insufficient_scope")
    assert_problem(ours.get("/v1/quota", params={"project": "theirs"}), 422, "invalid_request")
    assert_problem(ours.get("/v1/usage", params={"project": "theirs"}), 422, "invalid_request")


@pytest.mark.parametrize("value", [-1, 1.5, True, "1", 2**63, 10**400, [], {}], ids=lambda value: str(value)[:10])
def test_a_limit_is_a_number_that_can_be_kept(api: Api, value: Any) -> None:
    assert_problem(api.client.put("/v1/quotas/p", json={"max_active_jobs": value}), 422, "invalid_request")
    assert api.client.get("/v1/quotas").json()["data"] == []


@pytest.mark.parametrize("project", ["-x", "a" * 65, "a%20b", "%00", "%F0%9F%90%8D", "a%0Ab"])
def test_a_project_has_a_name(api: Api, project: str) -> None:
    assert_problem(api.client.put(f"/v1/quotas/{project}", json={}), 422, "invalid_request")


def test_of_a_batch_exactly_as_many_pass_as_there_is_room(database: Database, settings: Settings) -> None:
    ready = add_dataset(database)
    limit(database, max_active_jobs=4)
    limit(database, "b", max_active_jobs=1)
    creation = JobCreation(database, settings)
    requests = [wanted(ready, f"k{number}", name=f"n{number}") for number in range(6)]
    requests += [wanted(ready, name=f"b{number}", project="b") for number in range(2)]
    requests += [wanted(ready, name="c", project="c"), wanted("ds_nope", name="d")]
    answers = creation._create(database, requests)
    assert [isinstance(answer, Answer) for answer in answers] == [True] * 4 + [False] * 2 + [True, False, True, False]
    assert isinstance(answers[5], QuotaExceededError)
    with database.read() as unit:
        assert unit.quotas.active_jobs(["default", "b", "c"]) == {"default": 4, "b": 1, "c": 1}
    # What was answered is answered again, and a key whose request was refused is free.
    again = creation._create(database, [requests[0], requests[4]])
    assert isinstance(again[0], Answer)
    assert again[0].replayed
    assert isinstance(again[1], QuotaExceededError)
    with database.write() as unit:
        unit.jobs.move(again[0].body["id"], JobState.CANCELLED, Actor.API)
    assert isinstance(creation._create(database, [requests[4]])[0], Answer)


def test_however_many_create_at_once_the_limit_holds(database: Database, settings: Settings) -> None:
    """Of several API processes, through each door by which jobs come."""
    ready = add_dataset(database)
    failed = add_job(database, ready, state=JobState.QUEUED)
    with database.write() as unit:
        unit.jobs.move(failed, JobState.CANCELLED, Actor.API)
    limit(database, max_active_jobs=7)
    others = [Database(settings, FakeClock(), FakeQueue()) for _ in range(4)]

    def work(number: int) -> int:
        own = others[number % 4]
        creation, made = JobCreation(own, settings), 0
        for turn in range(6):
            if (number + turn) % 3:
                answers = creation._create(own, [wanted(ready), wanted(ready)])
                made += sum(isinstance(answer, Answer) for answer in answers)
            else:
                made += _retried(own, failed)
        return made

    with ThreadPoolExecutor(4) as pool:
        made = sum(pool.map(work, range(8)))
    for other in others:
        other.close()
    with database.read() as unit:
        assert unit.quotas.active_jobs(["default"]) == {"default": 7}
    assert made == 7


def _retried(database: Database, job_id: str) -> int:
    try:
        with database.write() as unit:
            retry_job(unit, job_id, from_scratch=True)
    except QuotaExceededError:
        return 0
    return 1


def test_a_quota_costs_jobs_no_statement_each(database: Database, settings: Settings) -> None:
    ready = add_dataset(database)
    limit(database, max_active_jobs=100, max_running_gpus=1, max_gpu_seconds_per_month=1000, max_stored_bytes=1000)
    creation = JobCreation(database, settings)
    creation._create(database, [wanted(ready)])
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    counts = []
    event.listen(database.engine, "before_cursor_execute", note)
    try:
        for count in (2, 20):
            seen.clear()
            creation._create(database, [wanted(ready) for _ in range(count)])
            counts.append(len(seen))
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    assert counts[0] == counts[1]


def test_sums_are_not_counted_at_each_job_claim_and_look(
    database: Database, settings: Settings, clock: FakeClock
) -> None:
    ready = add_dataset(database)
    limit(database, max_gpu_seconds_per_month=1000, max_stored_bytes=1000)
    creation = JobCreation(database, settings)
    sums: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sums.extend(table for table in ("checkpoint_files", "attempt_usage") if f"FROM {table}" in statement)

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        for _ in range(2):
            for _ in range(3):
                creation._create(database, [wanted(ready)])
                assert claim(database) is not None
                with database.read() as unit:
                    places(unit, settings, [unit.jobs.get(add_job(database, ready))])
            assert sorted(sums) == ["attempt_usage", "checkpoint_files"]
            clock.advance(5)
            sums.clear()
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def test_near_the_limit_sums_are_counted_again_after_a_second(
    database: Database, settings: Settings, clock: FakeClock
) -> None:
    ready = add_dataset(database)  # of 3 bytes
    creation = JobCreation(database, settings)

    def is_made() -> bool:
        return isinstance(creation._create(database, [wanted(ready)])[0], Answer)

    def store(size: int) -> None:
        with database.write() as unit:
            unit.session.execute(update(Dataset).where(Dataset.id == ready).values(size_bytes=size))

    limit(database, max_stored_bytes=1000)
    store(960)
    assert is_made()
    store(1000)
    clock.advance(1)
    assert not is_made()
    store(900)
    clock.advance(1)
    assert is_made()
    store(1000)
    clock.advance(5)
    assert not is_made()


def test_every_door_by_which_a_job_comes_asks_the_quota(limited: Api, ours: httpx.Client) -> None:
    own = limited.database.of("ours")
    ready = add_dataset(own)
    job = add_job(own, ready, project="ours")
    with own.write() as unit:
        unit.jobs.move(job, JobState.CANCELLED, Actor.API)
    limit(limited.database, "ours", max_active_jobs=1)
    sweep = {
        "name": "s",
        "job": {"base_model": "sam3-tiny", "dataset_id": ready},
        "parameters": {"lora.rank": {"values": [4, 8]}},
    }
    refusal(ours.post("/v1/sweeps", json=sweep), "max_active_jobs")
    assert ours.get("/v1/sweeps").json()["data"] == []
    assert ours.get("/v1/quota").json()["active_jobs"]["used"] == 0  # all of it or nothing
    assert ours.post("/v1/jobs", json=body(dataset_id=ready)).status_code == 201
    refusal(ours.post("/v1/jobs", json=body(dataset_id=ready)), "max_active_jobs")
    refusal(ours.post(f"/v1/jobs/{job}/retry"), "max_active_jobs")
    refusal(ours.post(f"/v1/jobs/{job}/clone"), "max_active_jobs")
    assert len(ours.get("/v1/jobs").json()["data"]) == 2


def test_gpus_at_once_are_waited_for(database: Database, settings: Settings, clock: FakeClock) -> None:
    dataset = add_dataset(database)
    limit(database, "a", max_running_gpus=3)
    jobs = []
    for project, gpus in (("a", 2), ("a", 2), ("a", 1), ("b", 1)):
        clock.advance(1)
        jobs.append(add_job(database, dataset, project=project, gpus=gpus))
    with database.write() as unit:
        unit.workers.beat("w-9", kind="gpu", host="h", pid=1, device="d", gpus=4)
    first = claim(database, 4)
    assert first is not None
    assert first.id == jobs[0]
    with database.read() as unit:
        found = places(unit, settings, [unit.jobs.get(job) for job in jobs])
    assert found[jobs[1]].reason == "project 'a' may run 3 GPUs at once, and has 1 left"
    assert found[jobs[1]].estimated_start_at is None
    assert found[jobs[3]].reason is None
    other = claim(database, 4)
    assert other is not None
    assert other.id == jobs[3]
    # The small one behind it would fit, but then the large one would never start.
    assert claim(database, 4) is None
    with database.write() as unit:
        unit.attempts.finish(first.id, first.epoch, JobState.SUCCEEDED, result={})
    assert [job.id for job in (claim(database, 4), claim(database, 4)) if job is not None] == jobs[1:3]


def test_small_workers_leave_a_large_job_its_room(database: Database, settings: Settings, clock: FakeClock) -> None:
    dataset = add_dataset(database)
    limit(database, "a", max_running_gpus=4)

    def add(gpus: int, project: str = "a", priority: int = 50) -> str:
        clock.advance(1)
        return add_job(database, dataset, project=project, gpus=gpus, priority=priority)

    def beat(*sizes: int) -> None:
        with database.write() as unit:
            for gpus in sizes:
                unit.workers.beat(f"w-{gpus}", kind="gpu", host="h", pid=1, device="d", gpus=gpus)

    def finish(job: Job | None) -> str | None:
        if job is not None:
            with database.write() as unit:
                unit.attempts.finish(job.id, job.epoch, JobState.SUCCEEDED, result={})
        return job and job.id

    beat(1, 4)
    add(1)
    running = claim(database, 1)
    large, small, low = add(4), add(1), add(1, priority=10)
    other = add(1, "b", priority=5)
    assert finish(claim(database, 1)) == other
    finish(running)
    assert claim(database, 1) is None  # there is room for either, and the large one is older
    assert finish(claim(database, 4)) == large
    with database.write() as unit:
        unit.jobs.change(small, NewEvent("message", "Changed"), priority=60)
    assert finish(claim(database, 1)) == small
    large = add(4)
    assert claim(database, 1) is None  # nor for those of a lower priority
    limit(database, "a", max_running_gpus=5)
    assert finish(claim(database, 1)) == low  # both fit
    small = add(1)
    limit(database, "a", max_running_gpus=4)
    clock.advance(settings.lease_timeout_s)
    beat(1)
    assert finish(claim(database, 1)) == small  # who would take the large one?


def test_a_job_that_could_never_start_is_refused_and_holds_nobody_up(api: Api) -> None:
    with served(api.settings) as fresh:
        ready = add_dataset(fresh.database)
        large = fresh.client.post("/v1/jobs", json=body(dataset_id=ready, resources={"gpus": 4})).json()["id"]
        limit(fresh.database, max_running_gpus=2)
        answer = fresh.client.post("/v1/jobs", json=body(dataset_id=ready, resources={"gpus": 4}))
        assert refusal(answer, "max_running_gpus")["errors"][0]["pointer"] == "/resources/gpus"
        small = fresh.client.post("/v1/jobs", json=body(dataset_id=ready)).json()["id"]
        assert "2 GPUs at once" in fresh.client.get(f"/v1/jobs/{large}").json()["queue"]["reason"]
        claimed = claim(fresh.database, 4)
        assert claimed is not None
        assert claimed.id == small
        assert claim(fresh.database, 4) is None


def test_many_workers_at_once_start_no_more_gpus_than_allowed(database: Database, settings: Settings) -> None:
    dataset = add_dataset(database)
    for project in ("a", "b", "c"):
        limit(database, project, max_running_gpus=2)
        for _ in range(5):
            add_job(database, dataset, project=project)
    others = [Database(settings, FakeClock(), FakeQueue()) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        claimed = [job for job in pool.map(claim, others * 4) if job is not None]
    for other in others:
        other.close()
    assert sorted(job.project for job in claimed) == ["a", "a", "b", "b", "c", "c"]


def test_used_up_gpu_seconds_end_with_the_month(api: Api) -> None:
    with served(api.settings) as fresh:
        clock, database, jobs = fresh.clock, fresh.database, fresh.client
        ready = add_dataset(database)
        limit(database, max_gpu_seconds_per_month=100)
        running, waiting = (jobs.post("/v1/jobs", json=body(dataset_id=ready)).json()["id"] for _ in range(2))
        held = claim(database)
        assert held is not None
        clock.advance(100)
        with database.write() as unit:
            unit.attempts.heartbeat(held.id, held.epoch)
        assert jobs.get(f"/v1/jobs/{running}").json()["usage"]["gpu_seconds"] == 100
        refused = refusal(jobs.post("/v1/jobs", json=body(dataset_id=ready)), "max_gpu_seconds_per_month")
        assert "2026-02-01" in refused["detail"]
        assert claim(database) is None  # what runs goes on, nothing else starts
        assert "GPU seconds of this month" in jobs.get(f"/v1/jobs/{waiting}").json()["queue"]["reason"]
        with database.write() as unit:
            unit.attempts.finish(held.id, held.epoch, JobState.SUCCEEDED, result={})
        assert jobs.delete(f"/v1/jobs/{running}").status_code == 204  # gives nothing back
        with database.write() as unit:
            assert unit.jobs.purge(running, limit=1000)
        quota = jobs.get("/v1/quota").json()["gpu_seconds"]
        assert (quota["used"], quota["remaining"]) == (100, 0)
        assert claim(database) is None
        clock.advance(31 * 86400)
        assert jobs.get("/v1/quota").json()["gpu_seconds"]["used"] == 0
        assert jobs.post("/v1/jobs", json=body(dataset_id=ready)).status_code == 201
        started = claim(database)
        assert started is not None
        assert started.id == waiting


def test_datasets_are_counted(limited: Api, ours: httpx.Client) -> None:
    limit(limited.database, "ours", max_datasets=1)
    files = {"file": ("a.zip", b"PK\x05\x06" + bytes(18), "application/zip")}
    made = ours.post("/v1/datasets", files=files, headers={"Idempotency-Key": "k"})
    assert made.status_code == 201
    refusal(ours.post("/v1/datasets", files={"file": ("b.zip", b"PK\x05\x06" + bytes(19))}), "max_datasets")
    assert ours.post("/v1/datasets", files=files, headers={"Idempotency-Key": "k"}).json() == made.json()
    assert len(limited.storage.list("datasets")) == 1  # nothing is left of what was refused
    assert ours.delete(f"/v1/datasets/{made.json()['id']}").status_code == 204
    assert ours.post("/v1/datasets", files=files).status_code == 201


def test_stored_bytes_are_what_is_kept_and_announced(api: Api, tmp_path: Path) -> None:
    with served(api.settings) as fresh:
        model = add_model(fresh.database, fresh.storage, tmp_path)
        stored = sum(fresh.storage.size(name) for name in fresh.storage.list("jobs"))
        dataset_bytes = 3
        used = fresh.client.get("/v1/quota").json()["stored_bytes"]["used"]
        assert used == stored + dataset_bytes
        limit(fresh.database, max_stored_bytes=int(used) + 1000)
        announced = fresh.client.post("/v1/uploads", json={"filename": "a.zip", "bytes": 900})
        assert announced.status_code == 201
        refusal(fresh.client.post("/v1/uploads", json={"filename": "b.zip", "bytes": 101}), "max_stored_bytes")
        refusal(upload(fresh, b"PK\x05\x06" + bytes(200)), "max_stored_bytes")
        assert fresh.client.delete(f"/v1/uploads/{announced.json()['id']}").status_code == 204
        small = upload(fresh, b"PK\x05\x06" + bytes(200))
        assert small.status_code == 201
        twin = upload(fresh, b"PK\x05\x06" + bytes(200))  # shares the archive
        assert twin.status_code == 201
        assert fresh.client.get("/v1/quota").json()["stored_bytes"]["used"] == used + 204
        limit(fresh.database, max_stored_bytes=int(used))
        refusal(fresh.client.post("/v1/jobs", json=body(dataset_id=small.json()["id"])), "max_stored_bytes")
        job = fresh.client.get(f"/v1/models/{model}").json()["job_id"]
        assert fresh.client.delete(f"/v1/jobs/{job}").status_code == 204
        left = fresh.client.get("/v1/quota").json()["stored_bytes"]["used"]
        assert left == used + 204  # the model has its files still
        assert fresh.client.delete(f"/v1/models/{model}").status_code == 204
        assert fresh.client.get("/v1/quota").json()["stored_bytes"]["used"] == 204 + dataset_bytes


def test_parts_beyond_the_announced_size_count(api: Api) -> None:
    with served(api.settings) as fresh:
        limit(fresh.database, max_stored_bytes=1000)
        spec = {"filename": "a.zip", "bytes": 300, "mime_type": "application/zip", "purpose": "fine-tune"}
        made = fresh.client.post("/v1/uploads", json=spec).json()
        used = []
        for _ in range(3):
            sent = fresh.client.post(f"/v1/uploads/{made['id']}/parts", files={"data": b"x" * 200})
            assert sent.status_code == 200
            used.append(fresh.client.get("/v1/quota").json()["stored_bytes"]["used"])
        assert used == [300, 400, 600]
        refusal(fresh.client.post("/v1/uploads", json={"filename": "b.zip", "bytes": 401}), "max_stored_bytes")
        assert fresh.client.post("/v1/uploads", json={"filename": "b.zip", "bytes": 400}).status_code == 201


def test_a_complete_upload_is_counted_once_with_its_dataset(api: Api) -> None:
    with served(api.settings) as fresh:
        limit(fresh.database, max_stored_bytes=1000)
        content = b"PK\x05\x06" + bytes(996)
        made = fresh.client.post("/v1/uploads", json={"filename": "a.zip", "bytes": 1000}).json()
        sent = fresh.client.put(
            f"/v1/uploads/{made['id']}/parts/1", content=content, headers={"Content-Type": "application/octet-stream"}
        )
        assert sent.status_code == 200
        assert fresh.client.post(f"/v1/uploads/{made['id']}/complete").status_code == 200
        source = {"source": {"type": "upload", "upload_id": made["id"]}}
        assert fresh.client.post("/v1/datasets", json=source).status_code == 201
        assert fresh.client.get("/v1/quota").json()["stored_bytes"]["used"] == 1000


def test_however_many_announce_uploads_at_once_the_limit_holds(database: Database, settings: Settings) -> None:
    limit(database, max_stored_bytes=1000, max_datasets=3)
    others = [Database(settings, FakeClock(), FakeQueue()) for _ in range(4)]

    def announce(own: Database) -> int:
        try:
            with own.write() as unit:
                create_upload(unit, settings, UploadSpec("a.zip", 300, None, None))
        except QuotaExceededError:
            return 0
        return 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(announce, others * 5)) == 3
    for other in others:
        other.close()
    with database.read() as unit:
        assert quota_of(unit, "default").stored_bytes.used == 900


def test_the_settings_limit_projects_that_have_no_quota(settings: Settings, clock: FakeClock, queue: FakeQueue) -> None:
    values = {"quota_active_jobs": 1, "quota_running_gpus": 1, "quota_datasets": 1, "quota_stored_bytes": 10**9}
    limited = settings.model_copy(update=values | {"quota_gpu_seconds_per_month": 10**6})
    database = Database(limited, clock, queue)
    ready = add_dataset(database)
    creation = JobCreation(database, limited)
    limit(database, "free")
    for project, expected in (("default", [True, False]), ("other", [True, False]), ("free", [True, True])):
        answers = creation._create(database, [wanted(ready, project=project) for _ in range(2)])
        assert [isinstance(answer, Answer) for answer in answers] == expected
    with database.read() as unit:
        quota = quota_of(unit, "default")
    limits = [quota.active_jobs, quota.running_gpus, quota.datasets, quota.stored_bytes, quota.gpu_seconds]
    assert [each.limit for each in limits] == [1, 1, 1, 10**9, 10**6]
    database.close()


def test_a_changed_quota_is_known_at_once_here_and_within_a_second_elsewhere(
    database: Database, settings: Settings
) -> None:
    clock = FakeClock()
    other = Database(settings, clock, FakeQueue())
    for most in (1, 2):
        limit(database, max_active_jobs=most)
        with database.read() as unit:
            assert unit.quotas.of(["default"])["default"].max_active_jobs == most
        clock.advance(1.1)
        with other.read() as unit:
            assert unit.quotas.of(["default"])["default"].max_active_jobs == most
    other.close()


def test_the_command_line_sets_and_lists(tmp_path: Path) -> None:
    migrate(Settings(data_dir=tmp_path))

    def command(*arguments: str) -> str:
        environment = {"SAM3_DATA_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "SAM3_QUOTA_DATASETS": "9"}
        whole = [sys.executable, "-m", "service.cli", "quotas", *arguments]
        done = subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    command("set", "ours", "--active-jobs", "3", "--running-gpus", "2")
    assert command("list").splitlines() == ["*  max_datasets=9", "ours  max_active_jobs=3 max_running_gpus=2"]
    rest = ("--gpu-seconds-per-month", "4", "--stored-bytes", "5", "--datasets", "6")
    command("set", "ours", *rest)
    assert command("list").splitlines()[1] == "ours  max_gpu_seconds_per_month=4 max_stored_bytes=5 max_datasets=6"
    command("remove", "ours")
    assert command("list").splitlines() == ["*  max_datasets=9"]


def test_what_a_worker_fetches_beyond_the_limit_is_given_up(database: Database) -> None:
    limit(database, max_stored_bytes=10)
    waiting = add_dataset(database, DatasetState.PROCESSING)
    with database.write() as unit:
        unit.session.execute(update(Dataset).where(Dataset.id == waiting).values(size_bytes=11))
    with database.write() as unit, pytest.raises(QuotaExceededError):
        unit.quotas.require_bytes("default", 0)
    with database.write() as unit:
        unit.session.execute(update(Dataset).where(Dataset.id == waiting).values(size_bytes=10))
        unit.quotas.require_bytes("default", 0)


def test_the_limits_of_one_project_are_read_where_they_are_set(api: Api) -> None:
    assert_problem(api.client.get("/v1/quotas/pallets"), 404, "not_found")
    put = api.client.put("/v1/quotas/pallets", json={"max_active_jobs": 3}).json()
    got = api.client.get("/v1/quotas/pallets").json()
    assert (got["project"], got["limits"]) == (put["project"], put["limits"])
    assert got in api.client.get("/v1/quotas").json()["data"]
