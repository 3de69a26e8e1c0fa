"""Jobs: create, list, read, cancel, and their checkpoints."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse

from service.api.bodies import StrictJsonRoute
from service.api.conditional import names
from service.api.deps import AppServices, IdempotencyKey, JobId, ReadUnit, WriteUnit
from service.api.errors import problem_responses
from service.api.schemas.checkpoints import CheckpointList, checkpoint_read
from service.api.schemas.jobs import JobCreate, JobQuery, JobRead, job_read
from service.api.schemas.lists import Page, page_of
from service.shared.states import JobState
from service.usecases import jobs as usecase
from service.usecases.idempotency import Answer, answer_once, fingerprint

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictJsonRoute)

POLL_AFTER_S = 5


@router.post("", status_code=201, response_model=JobRead, responses=problem_responses(400, 413, 415, 422, 503))
def create_job(
    unit: WriteUnit, found: AppServices, body: JobCreate, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a training job. It is queued at once, or waits in `validating_files` for its dataset's check."""
    spec = usecase.JobSpec(
        name=body.name,
        base_model=body.base_model,
        dataset_id=body.dataset_id,
        config=body.config,
        seed=body.seed,
        priority=body.priority,
        max_runtime_s=body.limits.max_runtime_s,
        max_attempts=body.limits.max_attempts,
        tags=list(dict.fromkeys(body.tags)),
        metadata=body.metadata,
    )

    def make() -> Answer:
        job = usecase.create_job(unit, found.settings, spec)
        read = job_read(job, unit.jobs.jobs_ahead(job))
        return Answer(read.urls.self, read.model_dump(mode="json"))

    request_sha256 = fingerprint(body.model_dump(mode="json", exclude_unset=True))
    answer = answer_once(unit, "jobs.create", idempotency_key, request_sha256, make)
    headers = {"Location": answer.location, "Retry-After": str(POLL_AFTER_S)}
    if answer.replayed:
        headers["Idempotent-Replayed"] = "true"
    return JSONResponse(answer.body, 201, headers)


@router.get("", responses=problem_responses(404, 422, 503))
def list_jobs(unit: ReadUnit, query: Annotated[JobQuery, Query()]) -> Page[JobRead]:
    """Jobs, newest first."""
    rows, has_more = unit.jobs.list(
        limit=query.limit,
        descending=query.order == "desc",
        after=query.after,
        before=query.before,
        states=[JobState(part) for part in query.status.split(",")] if query.status else [],
        dataset_id=query.dataset_id,
        tag=query.tag,
    )
    return page_of(rows, has_more, lambda job: job_read(job, unit.jobs.jobs_ahead(job)), lambda read: read.id)


@router.get(
    "/{job_id}",
    response_model=JobRead,
    responses={304: {"description": "Not modified"}, **problem_responses(404, 503)},
)
def get_job(unit: ReadUnit, job_id: JobId, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """One job. Ask again with `If-None-Match` to get 304 while nothing has changed."""
    job = unit.jobs.get(job_id)
    read = job_read(job, unit.jobs.jobs_ahead(job))
    content = read.model_dump_json().encode()
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if not read.is_terminal:
        headers["Retry-After"] = str(POLL_AFTER_S)
    if names(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(content, 200, headers, "application/json")


@router.post("/{job_id}/cancel", status_code=202, responses=problem_responses(404, 409, 503))
def cancel_job(unit: WriteUnit, job_id: JobId) -> JobRead:
    """Cancel a job; repeating it changes nothing. A running one saves a checkpoint first and is `cancelling`."""
    job = unit.jobs.request_cancel(job_id)
    return job_read(job, unit.jobs.jobs_ahead(job))


@router.get("/{job_id}/checkpoints", responses=problem_responses(404, 503))
def list_checkpoints(unit: ReadUnit, job_id: JobId) -> CheckpointList:
    """Saved checkpoints, newest first, with the hashes of their files."""
    unit.jobs.get(job_id)
    return CheckpointList(data=[checkpoint_read(checkpoint) for checkpoint in unit.checkpoints.list(job_id)])
