"""Rows that benchmarks begin with, and what a worker writes of them."""

from __future__ import annotations

from pathlib import Path

from sam3_lora.events import Event, EventType
from service.shared.clock import SystemClock
from service.shared.db.migrate import upgrade
from service.shared.db.models import Dataset, Job
from service.shared.ids import new_id
from service.shared.queue import CeleryQueue, Task
from service.shared.settings import Settings
from service.shared.states import DatasetState, JobState
from service.shared.unit_of_work import Database
from worker.observer import Observer

METRICS = 15  # of a step, about as many as a run has


class NoQueue:
    """No broker: what it costs is small, and not PostgreSQL's."""

    def ring(self, task: Task, *resource_ids: str) -> bool:
        return True

    def depth(self, task: Task) -> int | None:
        return 0

    def close(self) -> None:
        pass


def open_database(settings: Settings) -> Database:
    """The installation's database, with its schema."""
    upgrade(settings)
    clock = SystemClock()
    return Database(settings, clock, CeleryQueue(settings, clock))


def ready_dataset(database: Database) -> str:
    """Id of a new dataset without files that jobs may name."""
    with database.write() as unit:
        dataset = Dataset(id=new_id("ds"), name="none", filename="none", sha256="0" * 64, size_bytes=1, storage_key="x")
        unit.datasets.add(dataset)
    with database.write() as unit:
        claimed = unit.datasets.claim("benchmark")
        if claimed is None or claimed.id != dataset.id:
            raise RuntimeError("another dataset was claimed")
        unit.datasets.finish(claimed.id, claimed.epoch, DatasetState.READY, report={"status": "valid"})
    return dataset.id


def running_job(database: Database, dataset_id: str | None = None, *, priority: int = 50) -> Job:
    """A new job that this process holds as its worker; on a dataset of its own, unless one is given."""
    job = Job(
        id=new_id("job"),
        name="benchmark",
        state=JobState.QUEUED,
        base_model="sam3-tiny",
        dataset_id=dataset_id or ready_dataset(database),
        config={},
        resolved={},
        seed=0,
        priority=priority,
        max_runtime_s=3600,
        max_attempts=1,
        tags=[],
        labels={},
    )
    with database.write() as unit:
        unit.jobs.add(job)
    with database.write() as unit:
        claimed = unit.jobs.claim("benchmark")
    if claimed is None or claimed.id != job.id:
        raise RuntimeError("another job was claimed")
    return claimed


def observer_of(database: Database, job: Job, log: Path) -> Observer:
    """What stores the events of a job's trainer and its new log."""
    log.touch()
    return Observer(database, job, log, publish=lambda _: None, publish_artifact=lambda _: None)


def tell(observer: Observer, log: Path, step: int) -> None:
    """What a trainer says of a step; it is stored by the observer's next flush."""
    values = {f"train/metric_{number}": step / (number + 1) for number in range(METRICS)}
    observer(Event(EventType.METRICS, data={"step": step, "epoch": 1, "values": values}))
    progress = {"percent": 10.0, "epoch": 1, "epochs": 2, "step": step, "steps": 3600, "eta_s": 60.0}
    observer(Event(EventType.PROGRESS, data=progress))
    with log.open("a") as file:
        file.write(f"step {step}: loss 0.1234, learning rate 1e-4, 4.2 images/s\n")
