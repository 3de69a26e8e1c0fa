"""Whether any worker is large enough for a queued job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.shared.states import JobState
from service.usecases.queue import GPU

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.shared.db.models import Job
    from service.shared.settings import Settings
    from service.shared.unit_of_work import UnitOfWork


def without_worker(unit: UnitOfWork, settings: Settings, jobs: Sequence[Job]) -> dict[str, str]:
    """Of those of the jobs that are queued and that no living worker could take: why, by id."""
    queued = [job for job in jobs if job.state is JobState.QUEUED]
    if not queued:
        return {}
    most = unit.workers.most_gpus(GPU, within_s=settings.lease_timeout_s)
    return {job.id: _reason(job.gpus, most) for job in queued if job.gpus > most}


def _reason(gpus: int, most: int) -> str:
    if most == 0:
        return "no worker that trains is running"
    return f"no worker with {gpus} GPUs is running; the largest has {most}"
