"""When a job that waits will probably start, and why it does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from service.shared.db.repositories.queue import with_newest
from service.shared.queue import Task
from service.shared.states import JobState
from service.usecases.quotas import holds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from service.shared.db.models import Job
    from service.shared.db.repositories.queue import Lines, RunningJob
    from service.shared.settings import Settings
    from service.shared.unit_of_work import UnitOfWork

GPU = "gpu"


@dataclass(frozen=True)
class Place:
    """The place of a job that waits. `estimated_start_at` is to the minute; None where nothing is known to judge by."""

    jobs_ahead: int | None
    """None until it is queued."""
    estimated_start_at: datetime | None
    reason: str | None
    """Why it will not start as things are."""


@dataclass(frozen=True)
class Outlook:
    """What places are judged by."""

    lines: Lines
    running: Sequence[RunningJob]
    sizes: Mapping[str, int]
    """GPUs of the living workers, by their ids."""
    usual_s: float | None

    def with_newest(self, jobs: Iterable[Job]) -> Outlook:
        """With jobs that were created since."""
        return replace(self, lines=with_newest(self.lines, jobs))


def outlook(unit: UnitOfWork, settings: Settings) -> Outlook:
    """As it is now."""
    sizes = unit.workers.sizes(GPU, within_s=settings.lease_timeout_s)
    return Outlook(unit.queue.lines(), unit.queue.running(), sizes, unit.queue.usual_duration_s())


def places(unit: UnitOfWork, settings: Settings, jobs: Sequence[Job], known: Outlook | None = None) -> dict[str, Place]:
    """Places of those of the jobs that wait, by id; the same few statements for one as for many.

    Args:
        known: the outlook, from a moment ago, with these jobs in it; None: it is looked up.
    """
    queued = [job for job in jobs if job.state is JobState.QUEUED]
    unchecked = [job for job in jobs if job.state is JobState.VALIDATING_FILES]
    found = _queued_places(unit, settings, queued, known) if queued else {}
    return found | _unchecked_places(unit, settings, unchecked) if unchecked else found


def _unchecked_places(unit: UnitOfWork, settings: Settings, unchecked: Sequence[Job]) -> dict[str, Place]:
    """Of jobs that wait for a dataset's check."""
    is_checked = unit.workers.count_alive(Task.INGEST.queue, within_s=settings.lease_timeout_s) > 0
    reason = None if is_checked else "no worker that checks datasets is running"
    return {job.id: Place(None, None, reason) for job in unchecked}


def _queued_places(
    unit: UnitOfWork, settings: Settings, queued: Sequence[Job], known: Outlook | None
) -> dict[str, Place]:
    known = known or outlook(unit, settings)
    running, sizes, usual_s = known.running, known.sizes, known.usual_s
    ahead = unit.queue.jobs_ahead(queued, running, known.lines)
    held = holds(unit, queued, running)
    free_at = {
        gpus: _free_at(running, {worker for worker, size in sizes.items() if size >= gpus}, usual_s, unit.clock.now())
        for gpus in {job.gpus for job in queued}
    }
    return {
        job.id: Place(
            ahead[job.id],
            None if job.id in held else _start(ahead[job.id], free_at[job.gpus], usual_s),
            held.get(job.id) or _reason(job.gpus, max(sizes.values(), default=0)),
        )
        for job in queued
    }


@dataclass(frozen=True)
class Line:
    """Jobs of one project that are queued at one priority."""

    project: str
    priority: int
    queued: int


@dataclass(frozen=True)
class Overview:
    """The queue as a whole, and its lines."""

    queued: int
    running: int
    workers: int
    gpus: int
    usual_duration_s: float | None
    lines: list[Line]


def overview(unit: UnitOfWork, settings: Settings, project: str | None) -> Overview:
    """How long the queue is and what works it off; with a `project`, the lines of that alone."""
    lengths, sizes = unit.queue.lengths(), unit.workers.sizes(GPU, within_s=settings.lease_timeout_s)
    lines = [Line(of, priority, count) for (priority, of), count in lengths.items() if project in (None, of)]
    return Overview(
        queued=sum(lengths.values()),
        running=len(unit.queue.running()),
        workers=len(sizes),
        gpus=sum(sizes.values()),
        usual_duration_s=unit.queue.usual_duration_s(),
        lines=sorted(lines, key=lambda line: (-line.priority, line.project)),
    )


def _reason(gpus: int, most: int) -> str | None:
    if most == 0:
        return "no worker that trains is running"
    return f"no worker with {gpus} GPUs is running; the largest has {most}" if gpus > most else None


def _free_at(running: Iterable[RunningJob], workers: set[str], usual_s: float | None, now: datetime) -> list[datetime]:
    """When each of the workers will take its next job, as far as that can be told, soonest first."""
    ends: dict[str, datetime | None] = dict.fromkeys(workers, now)
    for job in running:
        if job.worker_id in ends:
            end = _end(job, usual_s)
            ends[job.worker_id] = None if end is None else max(now, end)
    return sorted(end for end in ends.values() if end is not None)


def _end(job: RunningJob, usual_s: float | None) -> datetime | None:
    progress = job.progress or {}
    if isinstance(progress.get("eta_s"), int | float) and "updated_at" in progress:
        return _later(datetime.fromisoformat(progress["updated_at"]), progress["eta_s"])
    if usual_s is not None and job.started_at is not None:
        return _later(job.started_at, usual_s)
    return None


def _later(start: datetime, seconds: float) -> datetime | None:
    """So many seconds after; None if no calendar goes so far."""
    try:
        return start + timedelta(seconds=seconds)
    except OverflowError:
        return None


def _start(ahead: int, free_at: list[datetime], usual_s: float | None) -> datetime | None:
    if not free_at:
        return None
    rounds, worker = divmod(ahead, len(free_at))
    if rounds and usual_s is None:
        return None
    # To the minute, so that a job's representation does not change with every look at it.
    start = _later(free_at[worker], rounds * (usual_s or 0.0) + 60)
    return None if start is None else start.replace(second=0, microsecond=0)
