"""What operators see: workers and the queue."""

from datetime import datetime
from typing import Literal

from service.api.schemas.lists import Read
from service.shared.db.models import Worker
from service.usecases.queue import Overview


class WorkerRead(Read):
    """A worker that is alive."""

    id: str
    """The worker."""
    object: Literal["worker"] = "worker"
    kind: str
    """gpu: trains and compares; cpu: checks, exports, delivers; predict: answers predictions."""
    host: str
    """Machine that it runs on."""
    device: str | None
    """What it computes on; null where it did not tell."""
    memory_bytes: int | None
    """Of the smallest of its devices; null where it did not tell."""
    gpus: int
    """That its jobs may use; of no meaning where it does not train."""
    job_id: str | None
    """The job that it trains now."""
    started_at: datetime
    """When it was started."""
    last_seen_at: datetime
    """Its last sign of life."""


class WorkerList(Read):
    object: Literal["list"] = "list"
    data: list[WorkerRead]
    """Living workers, the oldest first."""


class QueueLine(Read):
    project: str
    """Whose jobs these are."""
    priority: int
    """Of these jobs."""
    queued: int
    """How many wait."""


class QueueRead(Read):
    """Jobs that wait for a worker, and what works them off."""

    object: Literal["queue"] = "queue"
    queued: int
    """Of all projects."""
    running: int
    """Jobs that workers have now."""
    workers: int
    """That train."""
    gpus: int
    """Of these workers together; on CPUs processes."""
    usual_duration_s: float | None
    """Mean training time of the last jobs that succeeded; null before the first."""
    lines: list[QueueLine]
    """By priority and project, highest first; with the key of a project, its own."""


def worker_read(worker: Worker, job_id: str | None) -> WorkerRead:
    names = ("id", "kind", "host", "device", "memory_bytes", "gpus", "started_at", "last_seen_at")
    return WorkerRead(job_id=job_id, **{name: getattr(worker, name) for name in names})


def queue_read(found: Overview) -> QueueRead:
    return QueueRead(
        queued=found.queued,
        running=found.running,
        workers=found.workers,
        gpus=found.gpus,
        usual_duration_s=found.usual_duration_s,
        lines=[QueueLine(project=line.project, priority=line.priority, queued=line.queued) for line in found.lines],
    )
