from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import OperationalError

from service.reconciler import MAX_UNFETCHED, SWEEP_INTERVAL_S, LeaseWatch, Reconciler
from service.shared.db.migrate import upgrade
from service.shared.db.models import Dataset, Job
from service.shared.db.repositories.attempts import Lease
from service.shared.errors import LeaseLostError, StorageError
from service.shared.queue import Task
from service.shared.settings import Settings
from service.shared.states import DatasetState, JobState
from service.shared.storage import FoundFile, Storage
from service.usecases.actions import cancel_job
from tests.service.conftest import FakeClock, FakeQueue, add_dataset, add_job
from tests.stack import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.shared.unit_of_work import Database


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings)


@pytest.fixture
def reconciler(
    settings: Settings, database: Database, storage: Storage, queue: FakeQueue, clock: FakeClock
) -> Reconciler:
    return Reconciler(settings, database, storage, queue, clock)


def claim(database: Database) -> Job:
    with database.write() as unit:
        job = unit.jobs.claim("w-1")
    assert job is not None
    return job


def claim_dataset(database: Database) -> Dataset:
    with database.write() as unit:
        dataset = unit.datasets.claim("w-1")
    assert dataset is not None
    return dataset


def read(database: Database, job_id: str) -> Job:
    with database.read() as unit:
        return unit.jobs.get(job_id)


def watch(reconciler: Reconciler, clock: FakeClock, seconds: int) -> None:
    """Passes every five seconds, as in service."""
    for _ in range(seconds // 5):
        reconciler.run_once()
        clock.advance(5)
    reconciler.run_once()


def test_a_job_whose_worker_is_lost_runs_again_after_a_wait(
    reconciler: Reconciler, database: Database, clock: FakeClock
) -> None:
    add_job(database)
    lost = claim(database)
    watch(reconciler, clock, 25)
    assert read(database, lost.id).state is JobState.RUNNING
    clock.advance(5)
    reconciler.run_once()
    job = read(database, lost.id)
    assert (job.state, job.lost_attempts) == (JobState.QUEUED, 1)
    assert job.not_before is not None
    assert job.not_before > clock.now()
    with pytest.raises(LeaseLostError), database.write() as unit:
        unit.attempts.heartbeat(lost.id, lost.epoch)
    clock.advance(11)
    assert claim(database).epoch == lost.epoch + 1


def test_a_job_whose_worker_is_lost_too_often_fails(
    reconciler: Reconciler, database: Database, clock: FakeClock
) -> None:
    job_id = add_job(database, max_attempts=2)
    for _ in range(2):
        claim(database)
        watch(reconciler, clock, 30)
        clock.advance(25)
    job = read(database, job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error["code"], job.error["attempt"]) == ("worker_lost", 2)
    with database.read() as unit:
        assert [attempt.outcome for attempt in unit.attempts.list(job_id)] == ["queued", "failed"]


def test_a_worker_that_renews_keeps_its_job(reconciler: Reconciler, database: Database, clock: FakeClock) -> None:
    add_job(database)
    job = claim(database)
    for _ in range(20):
        reconciler.run_once()
        clock.advance(5)
        with database.write() as unit:
            unit.attempts.heartbeat(job.id, job.epoch)
    assert read(database, job.id).state is JobState.RUNNING


def test_a_cancelling_job_without_a_worker_ends_cancelled(
    reconciler: Reconciler, database: Database, clock: FakeClock
) -> None:
    add_job(database)
    job = claim(database)
    with database.write() as unit:
        cancel_job(unit, job.id)
    watch(reconciler, clock, 30)
    assert read(database, job.id).state is JobState.CANCELLED


def test_a_reaped_attempt_uses_no_gpu_after_its_last_heartbeat(
    reconciler: Reconciler, database: Database, clock: FakeClock
) -> None:
    add_job(database)
    job = claim(database)
    clock.advance(12)
    with database.write() as unit:
        unit.attempts.heartbeat(job.id, job.epoch)
    watch(reconciler, clock, 30)
    assert read(database, job.id).gpu_seconds == pytest.approx(12)


def test_a_lease_is_judged_only_while_it_is_watched() -> None:
    watch = LeaseWatch(30)
    lease = Lease("job_1", 1, 7)
    assert watch.stale([lease], 0) == []
    assert watch.stale([lease], 100) == []  # asleep between: the worker may have been as well
    assert watch.stale([lease], 125) == []
    assert watch.stale([lease], 130) == [lease]
    assert watch.stale([Lease("job_1", 1, 8)], 135) == []
    assert watch.stale([Lease("job_1", 2, 8)], 160) == []  # a new epoch is a new lease


def test_a_dataset_whose_worker_is_lost_is_checked_again_then_fails_with_its_jobs(
    reconciler: Reconciler, database: Database, clock: FakeClock
) -> None:
    dataset_id = add_dataset(database, DatasetState.PROCESSING)
    job_id = add_job(database, dataset_id, state=JobState.VALIDATING_FILES)
    for attempt in (1, 2, 3):
        assert claim_dataset(database).epoch == attempt
        watch(reconciler, clock, 30)
        clock.advance(45)
    with database.read() as unit:
        dataset = unit.datasets.get(dataset_id)
    assert dataset.state is DatasetState.FAILED
    assert dataset.error is not None
    assert dataset.error["code"] == "worker_lost"
    assert read(database, job_id).state is JobState.FAILED


def test_waiting_work_is_announced_again_but_never_floods_the_broker(
    reconciler: Reconciler, database: Database, queue: FakeQueue, clock: FakeClock
) -> None:
    ready = add_dataset(database)
    jobs = {add_job(database, ready) for _ in range(MAX_UNFETCHED + 3)}
    waiting = add_dataset(database, DatasetState.PROCESSING)
    queue.down = True
    reconciler.run_once()
    assert queue.rings == []
    queue.down = False
    reconciler.run_once()
    trained = [job for task, job in queue.rings if task is Task.TRAIN]
    assert len(trained) == len(set(trained)) == MAX_UNFETCHED
    assert (Task.INGEST, waiting) in queue.rings
    reconciler.run_once()
    assert {job for task, job in queue.rings if task is Task.TRAIN} == jobs
    queue.rings.clear()
    queue.unfetched = MAX_UNFETCHED
    clock.advance(31)
    reconciler.run_once()
    assert queue.rings == []


def test_deleted_datasets_and_leftovers_vanish_and_used_files_stay(
    reconciler: Reconciler, database: Database, storage: Storage, settings: Settings, clock: FakeClock, tmp_path: Path
) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"x")
    kept, deleted = add_dataset(database), add_dataset(database)
    keys = {dataset: f"datasets/{dataset}/archive" for dataset in (kept, deleted)}
    with database.write() as unit:
        for dataset, key in keys.items():
            unit.datasets.get(dataset).storage_key = key
            storage.put_file(key, source)
        unit.datasets.mark_deleted(deleted)
        unit.idempotency.reserve("jobs.create", {"k": "0" * 64})
    orphan = "jobs/job_x/e1/file"
    storage.put_file(orphan, source)
    settings.staging_dir.mkdir(parents=True)
    (settings.staging_dir / "broken").touch()
    clock.elapsed_s = time.time() - clock.now().timestamp()
    reconciler.run_once()
    reconciler.sweep()
    assert storage.exists(orphan)
    assert not storage.exists(keys[deleted])
    clock.advance(settings.staging_retention_s + 60)
    reconciler.sweep()
    assert storage.exists(orphan)  # a clock may be wrong
    reconciler.sweep()
    assert not storage.exists(orphan)
    assert storage.exists(keys[kept])
    assert list(settings.staging_dir.iterdir()) == []
    with database.write() as unit:
        assert unit.idempotency.reserve("jobs.create", {"k": "1" * 64}) == {"k"}


def test_a_failing_pass_is_not_the_last(
    reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    stop = threading.Event()
    passes: list[int] = []

    def run_once() -> None:
        passes.append(1)
        if len(passes) == 3:
            stop.set()
        raise OperationalError("SELECT", {}, Exception("gone"))

    monkeypatch.setattr(reconciler, "run_once", run_once)
    monkeypatch.setattr(reconciler, "_settings", settings.model_copy(update={"reconcile_interval_s": 0.01}))
    reconciler.run(stop)
    assert len(passes) == 3


def test_leases_are_watched_while_a_sweep_goes_on(
    reconciler: Reconciler,
    database: Database,
    storage: Storage,
    settings: Settings,
    clock: FakeClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop, leave, file = threading.Event(), threading.Event(), tmp_path / "pulse"
    sweeps: list[bool] = []  # whether there was a sign of life before

    def pages(*_: object, **__: object) -> Iterator[list[FoundFile]]:
        sweeps.append(file.exists())
        while not leave.wait(0.1):
            yield [FoundFile("jobs/job_x/e1/file", 1)]

    add_job(database)
    lost = claim(database)
    quick = settings.model_copy(update={"reconcile_interval_s": 0.01, "pulse_file": file})
    monkeypatch.setattr(reconciler, "_settings", quick)
    monkeypatch.setattr(storage, "pages", pages)
    monkeypatch.setattr("service.reconciler.recognises", lambda *_: True)
    thread = threading.Thread(target=reconciler.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: bool(sweeps), 10)
        for _ in range(12):
            touched_at = file.stat().st_mtime_ns
            wait_until(lambda touched_at=touched_at: file.stat().st_mtime_ns > touched_at, 10)
            clock.advance(5)
        wait_until(lambda: read(database, lost.id).state is JobState.QUEUED, 10)
        clock.advance(SWEEP_INTERVAL_S)
        touched_at = file.stat().st_mtime_ns
        wait_until(lambda: file.stat().st_mtime_ns > touched_at, 10)
        assert sweeps == [True]  # still the first
    finally:
        stop.set()
        thread.join(10)
        assert not [each for each in threading.enumerate() if each.name == "sweep"]  # it saw the end coming
        leave.set()


def test_a_failing_sweep_is_logged_and_begins_again_when_due(
    reconciler: Reconciler, clock: FakeClock, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    sweeps: list[int] = []
    lines: list[str] = []

    def fail(_: object) -> None:
        sweeps.append(1)
        if len(sweeps) == 2:
            stop.set()
        clock.advance(SWEEP_INTERVAL_S)
        raise StorageError("gone")

    monkeypatch.setattr("service.reconciler.log.error", lambda event, **_: lines.append(event))
    monkeypatch.setattr(reconciler, "sweep", fail)
    monkeypatch.setattr(reconciler, "_settings", settings.model_copy(update={"reconcile_interval_s": 0.01}))
    reconciler.run(stop)
    assert lines == ["sweep_failed"] * 2


def test_the_process_starts_with_a_sign_of_life(
    reconciler: Reconciler, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, file = threading.Event(), tmp_path / "pulse"

    def run_once() -> None:
        assert file.exists()
        stop.set()

    monkeypatch.setattr(reconciler, "run_once", run_once)
    monkeypatch.setattr(reconciler, "_settings", settings.model_copy(update={"pulse_file": file}))
    reconciler.run(stop)


def test_the_process_takes_jobs_from_the_dead_and_stops_on_sigterm(tmp_path: Path, queue: FakeQueue) -> None:
    from service.shared.clock import SystemClock
    from service.shared.unit_of_work import Database

    scaled = {"heartbeat_interval_s": 0.1, "self_fence_s": 0.2, "kill_grace_s": 0.1, "lease_timeout_s": 0.5}
    scaled |= {"reconcile_interval_s": 0.1}
    settings = Settings(data_dir=tmp_path / "data", **scaled)
    upgrade(settings)
    database = Database(settings, SystemClock(), queue)
    job_id = add_job(database)
    claim(database)
    variables = {f"SAM3_{name.upper()}": str(value) for name, value in scaled.items()}
    environment = os.environ | variables | {"SAM3_DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, "-m", "service.reconciler"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 30
            while read(database, job_id).state is JobState.RUNNING and time.monotonic() < deadline:
                time.sleep(0.1)
            assert read(database, job_id).state is JobState.QUEUED
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()
            database.close()
