"""When a queued job will probably start."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from service.shared.states import JobState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from service.shared.db.models import Job
    from service.shared.db.repositories.queue import RunningJob
    from service.shared.settings import Settings
    from service.shared.unit_of_work import UnitOfWork

GPU = "gpu"


@dataclass(frozen=True)
class Place:
    """A queued job's place. `estimated_start_at` is to the minute; None where nothing is known to judge by."""

    jobs_ahead: int
    estimated_start_at: datetime | None


def places(unit: UnitOfWork, settings: Settings, jobs: Sequence[Job]) -> dict[str, Place]:
    """Places of those of the jobs that are queued, by id; the same few statements for one as for many."""
    if not any(job.state is JobState.QUEUED for job in jobs):
        return {}
    running = unit.queue.running()
    ahead = unit.queue.jobs_ahead(jobs, running)
    workers = unit.workers.count_alive(GPU, within_s=settings.lease_timeout_s)
    usual_s = unit.queue.usual_duration_s()
    free_at = _free_at(running, workers, usual_s, unit.clock.now())
    return {job_id: Place(count, _start(count, free_at, usual_s)) for job_id, count in ahead.items()}


def _free_at(running: Iterable[RunningJob], workers: int, usual_s: float | None, now: datetime) -> list[datetime]:
    """When each living worker will take its next job, as far as that can be told, soonest first."""
    ends = []
    for job in running:
        progress = job.progress or {}
        if isinstance(progress.get("eta_s"), int | float) and "updated_at" in progress:
            ends.append(datetime.fromisoformat(progress["updated_at"]) + timedelta(seconds=progress["eta_s"]))
        elif usual_s is not None and job.started_at is not None:
            ends.append(job.started_at + timedelta(seconds=usual_s))
        else:
            workers -= 1
    idle = [now] * (workers - len(ends))
    return sorted([*(max(now, end) for end in ends), *idle])[: max(0, workers)]


def _start(ahead: int, free_at: list[datetime], usual_s: float | None) -> datetime | None:
    if not free_at:
        return None
    rounds, worker = divmod(ahead, len(free_at))
    if rounds and usual_s is None:
        return None
    # To the minute, so that a job's representation does not change with every look at it.
    start = free_at[worker] + timedelta(seconds=rounds * (usual_s or 0.0), minutes=1)
    return start.replace(second=0, microsecond=0)
