"""Parameter sweeps: many jobs at once, and the best of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from service.api.answers import created, created_responses
from service.api.bodies import StrictJsonRoute, validated
from service.api.deps import AppServices, IdempotencyKey, ReadUnit, WriteUnit
from service.api.errors import problem_responses
from service.api.schemas.jobs import JobCreate, job_spec
from service.api.schemas.lists import Page, PageQuery, page_of
from service.api.schemas.sweeps import SweepCreate, SweepRead, sweep_read
from service.shared.db.models import Sweep
from service.shared.errors import ServiceError
from service.shared.ids import new_id
from service.shared.unit_of_work import UnitOfWork
from service.usecases import sweeps
from service.usecases.idempotency import Answer, answer_once, fingerprint
from service.usecases.jobs import create_jobs

router = APIRouter(prefix="/sweeps", tags=["sweeps"], route_class=StrictJsonRoute)

SweepId = Annotated[
    str, Path(max_length=64, description="The sweep.", examples=["sweep_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
]


@router.post(
    "",
    status_code=201,
    response_model=SweepRead,
    responses={**created_responses("Retry-After"), **problem_responses(400, 403, 413, 415, 422, 503)},
)
def create_sweep(
    unit: WriteUnit, found: AppServices, body: SweepCreate, idempotency_key: IdempotencyKey = None
) -> Response:
    """Create jobs that try different values of their configuration: all of them, or none if one would be refused.

    Each is a job like any other, with `sweep_id` and the values of its `trial`.
    """

    def make() -> Answer:
        request = body.model_dump(mode="json", exclude_unset=True)
        sweep = Sweep(id=new_id("sweep"), name=body.name, project="", request=request)
        specs = []
        for number, values in enumerate(_trials(body), start=1):
            named = {"name": f"{body.name[:190]} {number}"} | body.job
            with _at_the_values(values):
                spec = job_spec(validated(JobCreate, sweeps.with_values(named, values)), found.database.project)
            specs.append(replace(spec, sweep_id=sweep.id, trial=values))
            sweep.project = spec.project
        for spec, job in zip(specs, create_jobs(unit, found.settings, specs), strict=True):
            if isinstance(job, ServiceError):
                with _at_the_values(spec.trial or {}):
                    raise job
        read = _read(unit, unit.sweeps.add(sweep))
        return Answer(read.url, read.model_dump(mode="json"))

    request_sha256 = fingerprint(body.model_dump(mode="json", exclude_unset=True))
    return created(answer_once(unit, "sweeps.create", idempotency_key, request_sha256, make))


@router.get("", responses=problem_responses(404, 422, 503))
def list_sweeps(unit: ReadUnit, query: Annotated[PageQuery, Query()]) -> Page[SweepRead]:
    """Sweeps, newest first."""
    rows, has_more = unit.sweeps.list(
        **query.window(),
    )
    trials = unit.sweeps.trials([sweep.id for sweep in rows])
    reads = [sweep_read(sweep, [trial for trial in trials if trial.sweep_id == sweep.id]) for sweep in rows]
    return page_of(reads, has_more, lambda read: read, lambda read: read.id)


@router.get("/{sweep_id}", responses=problem_responses(404, 422, 503))
def get_sweep(unit: ReadUnit, sweep_id: SweepId) -> SweepRead:
    """One sweep: how its jobs stand, and which is the best so far."""
    return _read(unit, unit.sweeps.get(sweep_id))


@router.post("/{sweep_id}/cancel", status_code=202, responses=problem_responses(404, 409, 422, 503))
def cancel_sweep(unit: WriteUnit, sweep_id: SweepId) -> SweepRead:
    """Cancel every job of the sweep that has not ended; repeating it changes nothing."""
    return _read(unit, sweeps.cancel_sweep(unit, sweep_id))


@router.delete("/{sweep_id}", status_code=204, responses=problem_responses(404, 409, 422, 503))
def remove_sweep(unit: WriteUnit, sweep_id: SweepId) -> None:
    """Delete a sweep that has ended, with its jobs. Their models stay."""
    sweeps.delete_sweep(unit, sweep_id)


def _trials(body: SweepCreate) -> Iterator[dict[str, Any]]:
    parameters = {path: parameter.choices() for path, parameter in body.parameters.items()}
    if body.trials is None:
        return sweeps.grid({path: choices for path, choices in parameters.items() if isinstance(choices, list)})
    return sweeps.drawn(parameters, body.trials, body.seed)


def _read(unit: UnitOfWork, sweep: Sweep) -> SweepRead:
    return sweep_read(sweep, unit.sweeps.trials([sweep.id]))


@contextmanager
def _at_the_values(values: dict[str, Any]) -> Iterator[None]:
    """Faults point to the parameter whose value makes them, else into `job`."""
    try:
        yield
    except ServiceError as error:
        places = {f"/config/{path.replace('.', '/')}": f"/parameters/{path}" for path in values}
        error.errors = [
            fault | {"pointer": places.get(fault["pointer"], f"/job{fault['pointer']}")} for fault in error.errors
        ]
        raise
