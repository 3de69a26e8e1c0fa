"""Fine-tuning jobs: the jobs of this service, asked for and told of as OpenAI's clients do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from service.api.answers import created, created_responses
from service.api.bodies import StrictJsonRoute, validated
from service.api.deps import AppServices, IdempotencyKey, ReadUnit, WriteUnit
from service.api.errors import problem_responses
from service.api.job_views import read_job, read_jobs
from service.api.openai.schemas.fine_tuning import (
    PLACES,
    FineTuningCheckpointRead,
    FineTuningEventRead,
    FineTuningJobCreate,
    FineTuningJobRead,
    FineTuningQuery,
    checkpoint_read,
    event_read,
    fine_tuning_job_read,
)
from service.api.openai.schemas.lists import Cursor
from service.api.schemas.job_queries import METADATA_PARAMETER
from service.api.schemas.jobs import JobCreate, JobRead, job_spec
from service.api.schemas.lists import Page, cut, page_of
from service.shared.errors import ServiceError
from service.usecases import actions
from service.usecases.idempotency import Keyed, fingerprint

router = APIRouter(prefix="/fine_tuning/jobs", tags=["OpenAI-compatible"], route_class=StrictJsonRoute)

FineTuningJobId = Annotated[
    str, Path(max_length=64, description="Id of the job.", examples=["job_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
]
MEMBER = re.compile(r"\b(base_model|dataset_id|validation_dataset_id)\b")
ACTED = problem_responses(404, 409, 422, 503)


@router.post(
    "",
    status_code=201,
    response_model=FineTuningJobRead,
    responses={**created_responses("Retry-After"), **problem_responses(400, 403, 413, 415, 422, 503)},
)
async def create_fine_tuning_job(
    found: AppServices, body: FineTuningJobCreate, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create a training job. What OpenAI has no word for is said as in `POST /jobs`."""
    request_sha256 = fingerprint(["fine_tuning", body.model_dump(mode="json", exclude_unset=True)])
    project = found.database.project
    with _pointing_into_body():
        spec = job_spec(validated(JobCreate, body.as_job()), project)
        answer = await found.creation.create(Keyed(spec, idempotency_key, request_sha256), project)
    read = fine_tuning_job_read(JobRead.model_validate(answer.body))
    answer = replace(answer, location=f"/v1/fine_tuning/jobs/{read.id}")
    return created(answer, body=read.model_dump(mode="json"))


@router.get("", responses=problem_responses(404, 422, 503), openapi_extra={"parameters": [METADATA_PARAMETER]})
def list_fine_tuning_jobs(
    unit: ReadUnit, found: AppServices, query: Annotated[FineTuningQuery, Query()]
) -> Page[FineTuningJobRead]:
    """Jobs, newest first, however they were created."""
    rows, has_more = unit.jobs.list(**query.window(), matching=query.matching())
    return page_of(read_jobs(unit, found.settings, rows), has_more, fine_tuning_job_read, lambda read: read.id)


@router.get("/{fine_tuning_job_id}", responses=problem_responses(404, 503))
async def get_fine_tuning_job(found: AppServices, fine_tuning_job_id: FineTuningJobId) -> FineTuningJobRead:
    """One job."""
    view = await found.watch.look(fine_tuning_job_id, found.database.project)
    return fine_tuning_job_read(JobRead.model_validate_json(view.content))


@router.post("/{fine_tuning_job_id}/cancel", responses=ACTED)
def cancel_fine_tuning_job(
    unit: WriteUnit, found: AppServices, fine_tuning_job_id: FineTuningJobId
) -> FineTuningJobRead:
    """Cancel a job; repeating it changes nothing. A running one saves a checkpoint first."""
    return fine_tuning_job_read(read_job(unit, found.settings, actions.cancel_job(unit, fine_tuning_job_id)))


@router.post("/{fine_tuning_job_id}/pause", responses=ACTED)
def pause_fine_tuning_job(
    unit: WriteUnit, found: AppServices, fine_tuning_job_id: FineTuningJobId
) -> FineTuningJobRead:
    """Hold a job, once it has saved a checkpoint; `native.status` tells a paused job from a queued one."""
    return fine_tuning_job_read(read_job(unit, found.settings, actions.pause_job(unit, fine_tuning_job_id)))


@router.post("/{fine_tuning_job_id}/resume", responses=ACTED)
def resume_fine_tuning_job(
    unit: WriteUnit, found: AppServices, fine_tuning_job_id: FineTuningJobId
) -> FineTuningJobRead:
    """Queue a paused job again; it goes on from its last checkpoint."""
    return fine_tuning_job_read(read_job(unit, found.settings, actions.resume_job(unit, fine_tuning_job_id)))


@router.get("/{fine_tuning_job_id}/events", responses=problem_responses(404, 422, 503))
def list_fine_tuning_events(
    unit: ReadUnit, fine_tuning_job_id: FineTuningJobId, query: Annotated[Cursor, Query()]
) -> Page[FineTuningEventRead]:
    """What has happened to the job, newest first."""
    unit.jobs.get(fine_tuning_job_id)
    before = None if query.after is None else unit.events.get(fine_tuning_job_id, query.after).seq
    rows = unit.events.list(fine_tuning_job_id, before=before, limit=query.items + 1, descending=True)
    return page_of(rows[: query.items], len(rows) > query.items, event_read, lambda read: read.id)


@router.get("/{fine_tuning_job_id}/checkpoints", responses=problem_responses(404, 422, 503))
def list_fine_tuning_checkpoints(
    unit: ReadUnit, fine_tuning_job_id: FineTuningJobId, query: Annotated[Cursor, Query()]
) -> Page[FineTuningCheckpointRead]:
    """Saved checkpoints, newest first. Few are kept of a job: the best, and the last ones."""
    unit.jobs.get(fine_tuning_job_id)
    rows, has_more = cut(unit.checkpoints.list(fine_tuning_job_id)[::-1], query.window(), lambda row: row.id)
    points = unit.metrics.at_steps(fine_tuning_job_id, {checkpoint.step for checkpoint in rows})
    return page_of(
        rows,
        has_more,
        lambda row: checkpoint_read(row, [point for point in points if point.step == row.step]),
        lambda read: read.id,
    )


@contextmanager
def _pointing_into_body() -> Iterator[None]:
    """Faults of the job that was asked for, at what they are called in the request."""
    try:
        yield
    except ServiceError as error:
        error.message = _named_as_here(error.message)
        error.errors = [
            fault | {"pointer": _pointer(fault["pointer"]), "message": _named_as_here(fault["message"])}
            for fault in error.errors
        ]
        raise


def _named_as_here(text: str) -> str:
    return MEMBER.sub(lambda match: PLACES[match[0]], text)


def _pointer(pointer: str) -> str:
    if not pointer:
        return ""
    first, *rest = pointer.removeprefix("/").split("/")
    return "/".join(["", PLACES.get(first, first), *rest])
