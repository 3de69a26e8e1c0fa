"""Jobs: create, list, read, change, delete, and their checkpoints."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from service.api.answers import POLL_AFTER_S, created, created_responses
from service.api.bodies import StrictJsonRoute
from service.api.conditional import TAG, names
from service.api.deps import AppServices, IdempotencyKey, JobId, ReadUnit, WriteUnit
from service.api.errors import problem_responses
from service.api.job_views import JobView, read_jobs, view_jobs
from service.api.response_headers import headers as described
from service.api.schemas.checkpoints import CheckpointRead, checkpoint_read
from service.api.schemas.job_queries import METADATA_PARAMETER, JobQuery
from service.api.schemas.jobs import JobCreate, JobPatch, JobRead, job_spec
from service.api.schemas.lists import Page, PageOf, cut, page_of
from service.api.waiting import requested_wait
from service.shared.errors import PreconditionFailedError
from service.usecases import actions
from service.usecases.idempotency import Keyed, fingerprint

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictJsonRoute)


@router.post(
    "",
    status_code=201,
    response_model=JobRead,
    responses={**created_responses("Retry-After"), **problem_responses(400, 403, 413, 415, 422, 503)},
)
async def create_job(found: AppServices, body: JobCreate, idempotency_key: IdempotencyKey = None) -> Response:
    """Create a training job. It is queued at once, or waits in `validating_files` for its datasets' check."""
    keyed = idempotency_key is not None
    request_sha256 = fingerprint(body.model_dump(mode="json", exclude_unset=True)) if keyed else ""
    spec = job_spec(body, found.database.project)
    return created(await found.creation.create(Keyed(spec, idempotency_key, request_sha256), found.database.project))


@router.get("", responses=problem_responses(404, 422, 503), openapi_extra={"parameters": [METADATA_PARAMETER]})
def list_jobs(unit: ReadUnit, found: AppServices, query: Annotated[JobQuery, Query()]) -> Page[JobRead]:
    """Jobs, newest first."""
    rows, has_more = unit.jobs.list(
        **query.window(),
        matching=query.matching(),
    )
    return page_of(read_jobs(unit, found.settings, rows), has_more, lambda read: read, lambda read: read.id)


@router.get(
    "/{job_id}",
    response_model=JobRead,
    responses={
        200: {"headers": described("ETag", "Cache-Control", "Retry-After", "Preference-Applied")},
        304: {
            "description": "Not modified",
            "headers": described("ETag", "Cache-Control", "Retry-After", "Preference-Applied"),
        },
        **problem_responses(404, 503),
    },
)
async def get_job(
    found: AppServices,
    job_id: JobId,
    if_none_match: Annotated[str | None, Header(description="The `ETag` of an earlier answer.")] = None,
    prefer: Annotated[
        str | None, Header(description="`wait=SECONDS`: answer later, with news.", examples=["wait=30"])
    ] = None,
) -> Response:
    """One job. Ask again with `If-None-Match` to get 304 while nothing has changed.

    With `Prefer: wait=30` the answer waits: with `If-None-Match` until the job has changed, without it until the job
    has ended, and at most so long (`Preference-Applied` says how long at most); then it is as without.
    """
    view = await found.watch.look(job_id, found.database.project)
    wait_s = requested_wait(prefer, found.settings.max_wait_s)
    if wait_s is not None:
        view = await found.watch.until(
            lambda seen: seen.is_terminal if if_none_match is None else not names(if_none_match, seen.etag),
            view,
            wait_s,
        )
    headers = _headers(view)
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s:.0f}"
    if names(if_none_match, view.etag):
        return Response(status_code=304, headers=headers)
    return Response(view.content, 200, headers, "application/json")


@router.patch(
    "/{job_id}",
    response_model=JobRead,
    responses={
        200: {"headers": described("ETag", "Cache-Control", "Retry-After")},
        **problem_responses(400, 404, 409, 412, 413, 415, 422, 503),
    },
)
def change_job(
    unit: WriteUnit,
    found: AppServices,
    job_id: JobId,
    body: JobPatch,
    if_match: Annotated[
        str | None,
        Header(description="Change the job only if nothing that PATCH changes has changed since this `ETag`."),
    ] = None,
) -> Response:
    """Change name, tags, metadata or priority; what is omitted stays."""
    job = unit.jobs.get(job_id, lock=True)
    [seen] = view_jobs(unit, found.settings, [job])
    if if_match is not None and not _is_of(if_match, seen):
        raise PreconditionFailedError(f"Job {job_id} has changed: its ETag is {seen.etag}. Read it again, then retry.")
    job = actions.change_job(unit, job, body.model_dump(exclude_unset=True))
    [view] = view_jobs(unit, found.settings, [job])
    return Response(view.content, 200, _headers(view), "application/json")


@router.delete(
    "/{job_id}",
    status_code=204,
    responses=problem_responses(404, 409, 503),
    summary="Delete an ended job with all that belongs to it",
)
def delete_job(unit: WriteUnit, job_id: JobId) -> None:
    """Delete an ended job with its events, metrics, logs and checkpoints. Jobs that start from it must have ended."""
    actions.delete_job(unit, job_id)


def _is_of(if_match: str, view: JobView) -> bool:
    """Whether a tag is of a view with the same values of all that PATCH can change."""
    return if_match.strip() == "*" or any(tag.rstrip('"').endswith(f".{view.own}") for tag in TAG.findall(if_match))


def _headers(view: JobView) -> dict[str, str]:
    headers = {"ETag": view.etag, "Cache-Control": "private, no-cache"}
    if not view.is_terminal:
        headers["Retry-After"] = str(POLL_AFTER_S)
    return headers


@router.get("/{job_id}/checkpoints", responses=problem_responses(404, 422, 503))
def list_checkpoints(unit: ReadUnit, job_id: JobId, query: PageOf) -> Page[CheckpointRead]:
    """Saved checkpoints, newest first, with the hashes of their files. Few are kept: the best, and the last ones."""
    unit.jobs.get(job_id)
    rows, has_more = cut(unit.checkpoints.list(job_id)[::-1], query.window(), lambda row: row.id)
    return page_of(rows, has_more, checkpoint_read, lambda read: read.id)
