"""Attempts as clients see them."""

from datetime import datetime
from typing import Literal

from service.api.schemas.lists import PageQuery, Read
from service.shared.db.models import Attempt
from service.shared.states import JobState


class AttemptWorker(Read):
    id: str
    """The worker."""
    device: str | None
    """What it computes on; null where it did not tell."""


class AttemptRead(Read):
    """One time that a worker had the job."""

    object: Literal["job.attempt"] = "job.attempt"
    job_id: str
    """The job."""
    attempt: int
    """Counts from 1."""
    worker: AttemptWorker
    """The worker that had the job."""
    started_at: datetime
    """When the worker took the job."""
    ended_at: datetime | None
    """When it was given back; for a lost worker, its last sign of life."""
    outcome: JobState | None
    """State the job went to; null while the attempt goes on."""
    reason: str | None
    """Why it ended; null while it goes on, and where there is nothing to say."""
    gpu_seconds: float | None
    """Seconds between the two, times the job's GPUs; null while the attempt goes on."""


class AttemptQuery(PageQuery):
    """Which page; an attempt's id in the list is its number."""

    order: Literal["asc", "desc"] = "asc"
    """By number."""


def attempt_read(attempt: Attempt, gpus: int) -> AttemptRead:
    """The attempt of a job with so many GPUs."""
    seconds = None if attempt.ended_at is None else max(0.0, (attempt.ended_at - attempt.started_at).total_seconds())
    return AttemptRead(
        job_id=attempt.job_id,
        attempt=attempt.attempt,
        worker=AttemptWorker(id=attempt.worker_id, device=attempt.worker_device),
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
        outcome=attempt.outcome,
        reason=attempt.reason,
        gpu_seconds=None if seconds is None else gpus * seconds,
    )
