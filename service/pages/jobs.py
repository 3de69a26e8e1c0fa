"""The list of jobs; where there is nothing yet, what to begin with."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.deps import AppServices, ReadUnit
from service.api.job_views import read_jobs
from service.pages.paging import SHOWN, Cursor, ways
from service.pages.rendering import PageRoute, page_or_part
from service.shared.db.repositories.job_filters import JobFilter
from service.shared.states import TERMINAL, JobState

router = APIRouter(prefix="/ui", route_class=PageRoute, include_in_schema=False)

GROUPS: dict[str, frozenset[JobState]] = {
    "all": frozenset(),
    "active": frozenset(JobState) - TERMINAL,
    "succeeded": frozenset({JobState.SUCCEEDED}),
    "failed": frozenset({JobState.FAILED}),
    "cancelled": frozenset({JobState.CANCELLED}),
}


@router.get("", name="page_start")
@router.get("/jobs", name="page_jobs")
def show_jobs(
    request: Request,
    unit: ReadUnit,
    found: AppServices,
    group: str = "all",
    after: Cursor = None,
    before: Cursor = None,
) -> Response:
    """Jobs, newest first, by how far they have come."""
    chosen = group if group in GROUPS else "all"
    rows, more = unit.jobs.list(
        limit=SHOWN, after=after, before=before, matching=JobFilter(states=sorted(GROUPS[chosen]))
    )
    jobs = read_jobs(unit, found.settings, rows)
    return page_or_part(
        request,
        "jobs",
        jobs=jobs,
        datasets=unit.datasets.names({job.dataset_id for job in jobs}),
        groups=list(GROUPS),
        group=chosen,
        is_empty=not jobs and chosen == "all" and after is None and before is None,
        query=request.url.query,
        **ways(rows, more=more, after=after, before=before),
    )
