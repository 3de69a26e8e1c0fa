from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from sam3_lora.config import JobConfig
from service.shared.clock import SystemClock
from service.shared.db.migrate import upgrade
from service.shared.db.models import Dataset, Job, MetricPoint
from service.shared.ids import new_id
from service.shared.settings import Settings
from service.shared.states import DatasetState, JobState
from service.shared.storage import Storage
from service.shared.unit_of_work import Database
from tests.coco.datasets import records, write_split
from tests.servers import postgres_server_url, postgres_url, redis_url, s3  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.shared.queue import Task

# A minute of the real protocol in a few seconds; the rules between the times hold. A lease outlasts what a busy machine
# may take to wake a thread and to sync a disk: seconds.
FAST = {
    "heartbeat_interval_s": 0.2,
    "self_fence_s": 5.0,
    "kill_grace_s": 1.0,
    "lease_timeout_s": 7.0,
    "terminate_grace_s": 2.0,
    "poll_interval_s": 0.5,
    "reconcile_interval_s": 0.2,
    "retry_backoff_s": 0.2,
    "storage_retry_s": 2,
    "retry_backoff_max_s": 0.4,
}


class RecordingQueue:
    """A doorbell that remembers who rang."""

    def __init__(self) -> None:
        self.rings: list[tuple[Task, str]] = []

    def ring(self, task: Task, *resource_ids: str) -> bool:
        self.rings += [(task, resource_id) for resource_id in resource_ids]
        return True

    def depth(self, task: Task) -> int | None:
        return 0


@pytest.fixture
def queue() -> RecordingQueue:
    return RecordingQueue()


both_databases = pytest.mark.parametrize("settings", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of a fresh installation with short times, on SQLite unless `both_databases` is asked for."""
    kind = getattr(request, "param", "sqlite")
    url = "" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    return Settings(data_dir=tmp_path / "data", database_url=url, **FAST)


@pytest.fixture
def database(settings: Settings, queue: RecordingQueue) -> Iterator[Database]:
    upgrade(settings)
    database = Database(settings, SystemClock(), queue)
    yield database
    database.close()


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings)


@pytest.fixture(scope="session")
def dataset_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid dataset of two splits."""
    folder = tmp_path_factory.mktemp("dataset")
    write_split(folder / "train", records(12), 0)
    write_split(folder / "valid", records(4, "val"), 100)
    return zip_folder(folder, tmp_path_factory.mktemp("zip") / "dataset.zip")


def zip_folder(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return target


def add_dataset(database: Database, storage: Storage, archive: Path, *, ready: bool = True) -> str:
    dataset_id = new_id("ds")
    stored = storage.put_file(f"datasets/{dataset_id}/archive", archive)
    with database.write() as unit:
        unit.datasets.add(
            Dataset(
                id=dataset_id,
                name="bolts",
                filename=archive.name,
                sha256=stored.sha256,
                size_bytes=stored.size_bytes,
                storage_key=stored.key,
            )
        )
        if ready:
            claimed = unit.datasets.claim("ingest-of-the-test")
            assert claimed is not None
            unit.datasets.finish(dataset_id, claimed.epoch, DatasetState.READY, report={"status": "valid"})
    return dataset_id


def add_job(database: Database, dataset_id: str, **values: Any) -> str:
    keep = values.pop("keep_checkpoints", 2)
    config = JobConfig.model_validate({"training": {"keep_checkpoints": keep}}).model_dump(mode="json")
    defaults: dict[str, Any] = {
        "id": new_id("job"),
        "name": "bolts-v1",
        "state": JobState.QUEUED,
        "base_model": "sam3-tiny",
        "dataset_id": dataset_id,
        "config": {},
        "resolved": {"config": config},
        "seed": 42,
        "priority": 50,
        "max_runtime_s": 60,
        "max_attempts": 3,
        "tags": [],
        "labels": {},
    }
    job = Job(**(defaults | values))
    with database.write() as unit:
        unit.jobs.add(job)
    return job.id


def job_of(database: Database, job_id: str) -> Job:
    with database.read() as unit:
        return unit.jobs.get(job_id)


def points_of(database: Database, job_id: str) -> list[MetricPoint]:
    with database.read() as unit:
        return [p for series in unit.metrics.series(job_id) for p in unit.metrics.points(job_id, series, 1000)]
