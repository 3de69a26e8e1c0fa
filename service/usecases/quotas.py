"""What a project may use: which jobs, datasets and uploads its quota refuses, and which jobs it keeps waiting."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from service.shared.errors import QuotaExceededError, fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from service.shared.db.models import Job
    from service.shared.db.repositories.queue import RunningJob
    from service.shared.db.repositories.quotas import Limits
    from service.shared.unit_of_work import UnitOfWork


@dataclass(frozen=True)
class Allowance:
    """How much of a limit is used; `limit` None: there is none."""

    limit: int | None
    used: float
    resets_at: datetime | None = None
    """When what was used no longer counts, whatever is done."""


@dataclass(frozen=True)
class Quota:
    """The limits of a project and what is used of them."""

    project: str
    active_jobs: Allowance
    running_gpus: Allowance
    gpu_seconds: Allowance
    stored_bytes: Allowance
    datasets: Allowance


def refused(unit: UnitOfWork, jobs: Sequence[Job]) -> dict[str, QuotaExceededError]:
    """Of new jobs, in their order, those that the quota of their project refuses, by id, each with why.

    Call it once for all jobs that a transaction is about to store, and store none that is refused: jobs are counted as
    the database has them, and nobody else adds one to a limited project until the transaction ends. One statement where
    nothing is limited, a few for each limited project, however many jobs.
    """
    limits = unit.quotas.of({job.project for job in jobs})
    counted = {project for project, own in limits.items() if own.max_active_jobs is not None}
    unit.quotas.lock(counted)
    active = unit.quotas.active_jobs(counted) if counted else {}
    spent = unit.quotas.recent_gpu_seconds(limits)
    used_up = {project: _used_up(unit, project, own, spent.get(project, 0.0)) for project, own in limits.items()}
    found = {}
    for job in jobs:
        own = limits[job.project]
        error = used_up[job.project] or _too_large(job, own)
        if error is None and own.max_active_jobs is not None:
            if active[job.project] >= own.max_active_jobs:
                error = _active_jobs(job.project, own.max_active_jobs)
            else:
                active[job.project] += 1
        if error is not None:
            found[job.id] = error
    return found


def admit_job(unit: UnitOfWork, job: Job) -> None:
    """As `refused`, for the only new job of a transaction.

    Raises:
        QuotaExceededError: if it is refused.
    """
    if error := refused(unit, [job]).get(job.id):
        raise error


def admit_dataset(unit: UnitOfWork, new_bytes: int) -> None:
    """Refuse a new dataset of the unit's project that would be one too many, or too large.

    Args:
        new_bytes: what storage has to keep for it that does not count already, or the least that it can be.

    Raises:
        QuotaExceededError: if it is refused.
    """
    most = unit.quotas.of([unit.project])[unit.project].max_datasets
    if most is not None:
        unit.quotas.lock([unit.project])
        if unit.quotas.datasets(unit.project) >= most:
            message = f"Project {unit.project!r} may have {most} datasets and has as many: delete one first."
            raise _exceeded("max_datasets", message)
    if new_bytes:
        unit.quotas.require_bytes(unit.project, new_bytes)


def holds(unit: UnitOfWork, jobs: Iterable[Job], running: Sequence[RunningJob]) -> dict[str, str]:
    """Of queued jobs those that their project's quota keeps waiting, by id, and why."""
    queued = list(jobs)
    limits = unit.quotas.of({job.project for job in queued})
    spent = unit.quotas.recent_gpu_seconds(limits)
    busy: Counter[str] = Counter()
    for held in running:
        busy[held.project] += held.gpus
    found = {}
    for job in queued:
        own = limits[job.project]
        left = own.gpus_left(busy[job.project], spent.get(job.project, 0.0))
        if left is None or job.gpus <= left:
            continue
        if job.project in spent and own.gpus_left(0, spent[job.project]) == 0:
            found[job.id] = f"project {job.project!r} has used its GPU seconds of this month"
        elif own.max_running_gpus is not None:
            found[job.id] = f"project {job.project!r} may run {own.max_running_gpus} GPUs at once, and has {left} left"
    return found


def quota_of(unit: UnitOfWork, project: str) -> Quota:
    """The limits of a project and what is used of them now."""
    limits, now = unit.quotas.of([project])[project], unit.clock.now()
    return Quota(
        project=project,
        active_jobs=Allowance(limits.max_active_jobs, unit.quotas.active_jobs([project])[project]),
        running_gpus=Allowance(limits.max_running_gpus, unit.quotas.running_gpus(project)),
        gpu_seconds=Allowance(
            limits.max_gpu_seconds_per_month, unit.usage.spent_this_month([project])[project], _next_month(now)
        ),
        stored_bytes=Allowance(limits.max_stored_bytes, unit.quotas.stored_bytes(project)),
        datasets=Allowance(limits.max_datasets, unit.quotas.datasets(project)),
    )


def _used_up(unit: UnitOfWork, project: str, limits: Limits, gpu_seconds: float) -> QuotaExceededError | None:
    """Why no job of a project may be made at all, as of the last seconds: a new job itself adds to neither sum."""
    seconds, stored = limits.max_gpu_seconds_per_month, limits.max_stored_bytes
    if seconds is not None and gpu_seconds >= seconds:
        resets_at = _next_month(unit.clock.now()).isoformat()
        message = f"Project {project!r} has used its {seconds} GPU seconds of this month: wait until {resets_at}."
        return _exceeded("max_gpu_seconds_per_month", message)
    if stored is not None and unit.quotas.recent_bytes(project, stored) >= stored:
        message = f"Project {project!r} stores the {stored} bytes that it may: delete jobs, models or datasets first."
        return _exceeded("max_stored_bytes", message)
    return None


def _too_large(job: Job, limits: Limits) -> QuotaExceededError | None:
    if limits.max_running_gpus is None or job.gpus <= limits.max_running_gpus:
        return None
    message = f"Project {job.project!r} may run {limits.max_running_gpus} GPUs at once, this job needs {job.gpus}."
    return _exceeded("max_running_gpus", message, "/resources/gpus")


def _active_jobs(project: str, most: int) -> QuotaExceededError:
    message = f"Project {project!r} may have {most} jobs that have not ended, and has as many: wait, or cancel one."
    return _exceeded("max_active_jobs", message)


def _exceeded(limit: str, message: str, pointer: str = "") -> QuotaExceededError:
    return QuotaExceededError(message, errors=[fault(pointer, limit, message)])


def _next_month(now: datetime) -> datetime:
    year, month = divmod(now.year * 12 + now.month, 12)
    return datetime(year, month + 1, 1, tzinfo=UTC)
