"""Who works, and what waits."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.deps import AppServices, ReadUnit, RequestAccess
from service.api.schemas.operations import queue_read, worker_read
from service.pages.rendering import PageRoute, page_or_part
from service.usecases.access import Scope
from service.usecases.queue import overview

router = APIRouter(prefix="/ui/workers", route_class=PageRoute, include_in_schema=False)


@router.get("", name="page_workers")
def show_workers(request: Request, unit: ReadUnit, found: AppServices, access: RequestAccess) -> Response:
    """The queue, and the workers to those who may see them."""
    alive = unit.workers.alive(within_s=found.settings.lease_timeout_s) if access.allows(Scope.ADMIN) else []
    return page_or_part(
        request,
        "workers",
        workers=[worker_read(worker, job_id) for worker, job_id in alive],
        sees_workers=access.allows(Scope.ADMIN),
        queue=queue_read(overview(unit, found.settings, found.database.project)),
    )
