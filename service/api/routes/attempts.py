"""Attempts of a job: which worker tried it, when, and how that ended."""

from typing import Annotated

from fastapi import APIRouter, Query

from service.api.deps import JobId, ReadUnit
from service.api.errors import problem_responses
from service.api.schemas.attempts import AttemptQuery, AttemptRead, attempt_read
from service.api.schemas.lists import Page, cut, page_of

router = APIRouter(prefix="/jobs/{job_id}/attempts", tags=["jobs"])


@router.get("", responses=problem_responses(404, 422, 503))
def list_attempts(unit: ReadUnit, job_id: JobId, query: Annotated[AttemptQuery, Query()]) -> Page[AttemptRead]:
    """Times that a worker has taken the job, oldest first. For `after` and `before` give numbers of attempts."""
    gpus = unit.jobs.get(job_id).gpus
    rows, has_more = cut(unit.attempts.list(job_id), query.window(), lambda row: str(row.attempt))
    return page_of(rows, has_more, lambda row: attempt_read(row, gpus), lambda read: str(read.attempt))
