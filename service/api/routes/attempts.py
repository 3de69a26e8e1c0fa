"""Attempts of a job: which worker tried it, when, and how that ended."""

from fastapi import APIRouter

from service.api.deps import JobId, ReadUnit
from service.api.errors import problem_responses
from service.api.schemas.attempts import AttemptList, attempt_read

router = APIRouter(prefix="/jobs/{job_id}/attempts", tags=["jobs"])


@router.get("", responses=problem_responses(404, 422, 503))
def list_attempts(unit: ReadUnit, job_id: JobId) -> AttemptList:
    """Times that a worker has taken the job, oldest first."""
    gpus = unit.jobs.get(job_id).gpus
    return AttemptList(data=[attempt_read(attempt, gpus) for attempt in unit.attempts.list(job_id)])
