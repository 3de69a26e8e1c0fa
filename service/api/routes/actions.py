"""What can be done with a job: cancel, stop, pause, resume, and make a new one of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Response

from service.api.answers import created, created_responses
from service.api.bodies import StrictJsonRoute, validated
from service.api.deps import AppServices, IdempotencyKey, JobId, WriteUnit
from service.api.errors import problem_responses
from service.api.job_views import read_job
from service.api.schemas.jobs import JobClone, JobCreate, JobRead, JobRetry, job_spec
from service.shared.db.repositories.events import NewEvent
from service.shared.errors import ServiceError
from service.usecases import actions, retries
from service.usecases.idempotency import Answer, answer_once, fingerprint
from service.usecases.jobs import create_job

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"], route_class=StrictJsonRoute)

ACTED: dict[str, Any] = {"status_code": 202, "responses": problem_responses(404, 409, 422, 503)}
MADE: dict[str, Any] = {
    "status_code": 201,
    "response_model": JobRead,
    "responses": {**created_responses("Retry-After"), **problem_responses(400, 403, 404, 409, 413, 415, 422, 503)},
}


@router.post("/cancel", **ACTED)
def cancel_job(unit: WriteUnit, found: AppServices, job_id: JobId) -> JobRead:
    """Cancel a job; repeating it changes nothing. A running one saves a checkpoint first and is `cancelling`."""
    return read_job(unit, found.settings, actions.cancel_job(unit, job_id))


@router.post("/stop", **ACTED)
def stop_job(unit: WriteUnit, found: AppServices, job_id: JobId) -> JobRead:
    """End a running job early and well: it finishes its step, evaluates, saves and succeeds.

    Repeating it, also once the job has succeeded, changes nothing.
    """
    return read_job(unit, found.settings, actions.stop_job(unit, job_id))


@router.post("/pause", **ACTED)
def pause_job(unit: WriteUnit, found: AppServices, job_id: JobId) -> JobRead:
    """Hold a job. A running one saves a checkpoint, frees its worker and is `pausing` until then."""
    return read_job(unit, found.settings, actions.pause_job(unit, job_id))


@router.post("/resume", **ACTED)
def resume_job(unit: WriteUnit, found: AppServices, job_id: JobId) -> JobRead:
    """Queue a paused job again; it goes on from its last checkpoint."""
    return read_job(unit, found.settings, actions.resume_job(unit, job_id))


@router.post("/retry", **MADE, summary="Make a new job of one that did not succeed")
def retry_job(
    unit: WriteUnit,
    found: AppServices,
    job_id: JobId,
    body: JobRetry = JobRetry(),  # noqa: B008 - immutable
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make a new job of one that failed or was cancelled, going on from its last good checkpoint.

    The new job has the same configuration, and `retry_of` names the old one. After a `time_limit`, give a higher
    `limits.max_runtime_s`: its time counts anew.
    """

    def make() -> Answer:
        limits = body.limits.model_dump(exclude_none=True)
        job = retries.retry_job(unit, job_id, from_scratch=body.from_scratch, **limits)
        read = read_job(unit, found.settings, job)
        return Answer(read.urls.self, read.model_dump(mode="json"))

    request_sha256 = fingerprint([job_id, body.model_dump(mode="json")])
    return created(answer_once(unit, "jobs.retry", idempotency_key, request_sha256, make))


@router.post("/clone", **MADE, summary="Create a job like this one, with changes")
def clone_job(
    unit: WriteUnit,
    found: AppServices,
    job_id: JobId,
    body: JobClone = JobClone(),  # noqa: B008 - immutable
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a job like this one, in any state, with changes; it trains from the beginning."""

    def make() -> Answer:
        source = unit.jobs.get(job_id)
        with _pointing_into_overrides():
            spec = job_spec(
                validated(JobCreate, retries.merged(retries.as_submitted(source), body.overrides)),
                found.database.project,
            )
            event = NewEvent("message", f"Cloned from {source.id}", {"cloned_from": source.id})
            job = create_job(unit, found.settings, spec, event)
        read = read_job(unit, found.settings, job)
        return Answer(read.urls.self, read.model_dump(mode="json"))

    request_sha256 = fingerprint([job_id, body.model_dump(mode="json")])
    return created(answer_once(unit, "jobs.clone", idempotency_key, request_sha256, make))


@contextmanager
def _pointing_into_overrides() -> Iterator[None]:
    try:
        yield
    except ServiceError as error:
        error.errors = [fault | {"pointer": f"/overrides{fault['pointer']}"} for fault in error.errors]
        raise
