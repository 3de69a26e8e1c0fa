"""What operators and probes ask: alive, ready, which version, who works, who waits."""

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Response
from sqlalchemy.exc import SQLAlchemyError

from sam3_lora.version import VERSION
from service.api.deps import AppServices, ReadUnit, Services
from service.api.errors import problem_responses
from service.api.exposition import OPENMETRICS, PLAIN
from service.api.response_headers import headers
from service.api.schemas.lists import Read
from service.api.schemas.operations import QueueRead, WorkerList, queue_read, worker_read
from service.shared.db.migrate import Schema, schema_of
from service.shared.queue import KINDS, Task
from service.usecases.queue import overview

router = APIRouter(tags=["operations"])

Health = Literal["ok", "degraded", "failed"]


class Liveness(Read):
    status: Literal["ok"] = "ok"
    """Always `ok`."""


class Readiness(Read):
    """`failed`: nothing can be accepted. `degraded`: work is accepted and stored, but starts late or waits."""

    status: Health
    """The worst of `checks`."""
    checks: dict[str, Health]
    """database, storage, broker, gpu_workers, cpu_workers, predict_workers."""


class Version(Read):
    version: str
    """Version of the service."""
    api: Literal["v1"] = "v1"
    """Version of the API, which paths begin with."""
    base_models: list[str]
    """What jobs on this server may name as base_model."""


@router.head("/livez", include_in_schema=False)
@router.get("/livez")
def live() -> Liveness:
    """Whether the process answers."""
    return Liveness()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": Readiness, "description": "Nothing can be accepted"}})
def ready(found: AppServices, response: Response) -> Readiness:
    """Whether work can be accepted; without a worker or broker it still is (200, `degraded`)."""
    checks = _database_checks(found)
    checks["storage"] = "ok" if found.exposition.storage.ask() else "failed"
    checks["broker"] = "degraded" if found.queue.depth(Task.TRAIN) is None else "ok"
    worst: Health = "ok"
    if "degraded" in checks.values():
        worst = "degraded"
    if "failed" in checks.values():
        worst = "failed"
        response.status_code = 503
    return Readiness(status=worst, checks=checks)


@router.get("/version")
def version(found: AppServices) -> Version:
    """What is installed here."""
    return Version(version=VERSION, base_models=list(found.settings.base_models))


@router.get("/workers", responses=problem_responses(403, 503))
def list_workers(unit: ReadUnit, found: AppServices) -> WorkerList:
    """Workers that gave a sign of life lately, the oldest first."""
    alive = unit.workers.alive(within_s=found.settings.lease_timeout_s)
    return WorkerList(data=[worker_read(worker, job_id) for worker, job_id in alive])


@router.get("/queue", responses=problem_responses(403, 503))
def get_queue(unit: ReadUnit, found: AppServices) -> QueueRead:
    """How many jobs wait, of whom, and what works them off."""
    return queue_read(overview(unit, found.settings, found.database.project))


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "content": {PLAIN: {"schema": {"type": "string"}}, OPENMETRICS: {"schema": {"type": "string"}}},
            "headers": headers("Vary"),
        },
        **problem_responses(403),
    },
    summary="Metrics for Prometheus",
)
def scrape(
    found: AppServices,
    accept: Annotated[str | None, Header(description="`application/openmetrics-text`: as OpenMetrics.")] = None,
) -> Response:
    """Metrics of the installation and of this process, as text for Prometheus or, by `Accept`, as OpenMetrics.

    They are about all projects: where keys are asked for, they need one with the scope `admin`.
    """
    content, content_type = found.exposition.render(accept)
    return Response(content, 200, {"Vary": "Accept", "Content-Type": content_type})


def _database_checks(found: Services) -> dict[str, Health]:
    try:
        with found.database.read() as unit:
            if schema_of(unit.session.connection()) not in (Schema.PRESENT, Schema.NEWER):
                return {"database": "failed"}
            alive = {
                f"{kind}_workers": unit.workers.count_alive(kind, within_s=found.settings.lease_timeout_s)
                for kind in KINDS
            }
    except SQLAlchemyError:
        return {"database": "failed"}
    return {"database": "ok", **{name: "ok" if count else "degraded" for name, count in alive.items()}}
