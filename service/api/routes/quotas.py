"""What projects may use and have used."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from service.api.bodies import StrictJsonRoute
from service.api.deps import AppServices, ReadUnit, WriteUnit
from service.api.errors import problem_responses
from service.api.schemas.jobs import Project
from service.api.schemas.quotas import (
    ProjectQuotaList,
    ProjectQuotaRead,
    QuotaLimits,
    QuotaQuery,
    QuotaRead,
    UsageQuery,
    UsageRead,
    limits_read,
    project_quota_read,
    quota_read,
    usage_read,
)
from service.shared.errors import invalid
from service.usecases.quotas import quota_of
from service.usecases.usage import usage

router = APIRouter(tags=["access"], route_class=StrictJsonRoute)

ProjectName = Annotated[Project, Path(description="The project; it need not have anything yet.")]


@router.get("/quota", responses=problem_responses(403, 422, 503))
def get_quota(unit: ReadUnit, found: AppServices, query: Annotated[QuotaQuery, Query()]) -> QuotaRead:
    """What the project may use, what of it is used, and what is left."""
    return quota_read(quota_of(unit, _chosen(query.project, found.database.project) or unit.project))


@router.get("/usage", responses=problem_responses(403, 422, 503), summary="What was used, by day, month or project")
def get_usage(unit: ReadUnit, found: AppServices, query: Annotated[UsageQuery, Query()]) -> UsageRead:
    """GPU seconds and ended jobs by day, month or project, those of deleted jobs too; and what is stored now."""
    project = _chosen(query.project, found.database.project)
    first, last = query.days(unit.clock.now().date())
    total, groups = usage(unit, first, last, query.group_by, project)
    return usage_read(first, last, total, groups, None if project is None else unit.quotas.stored_bytes(project))


@router.get("/quotas", responses=problem_responses(403, 503))
def list_quotas(unit: ReadUnit) -> ProjectQuotaList:
    """Projects that have limits of their own, and the limits of all others."""
    rows = [project_quota_read(row) for row in unit.quotas.list()]
    return ProjectQuotaList(default=limits_read(unit.quotas.default), data=rows)


@router.get("/quotas/{project}", responses=problem_responses(403, 404, 422, 503))
def get_project_quota(unit: ReadUnit, project: ProjectName) -> ProjectQuotaRead:
    """The limits that a project has of its own."""
    return project_quota_read(unit.quotas.get(project))


@router.put("/quotas/{project}", responses=problem_responses(400, 403, 413, 415, 422, 503))
def set_quota(unit: WriteUnit, project: ProjectName, body: QuotaLimits) -> ProjectQuotaRead:
    """Give a project limits of its own, in place of all that it had: what is omitted or null is unlimited.

    What is there already stays, also beyond a new limit.
    """
    unit.quotas.set(project, body.limits())
    return ProjectQuotaRead(project=project, limits=body, updated_at=unit.clock.now())


@router.delete("/quotas/{project}", status_code=204, responses=problem_responses(403, 422, 503))
def remove_quota(unit: WriteUnit, project: ProjectName) -> None:
    """Give a project the limits of all others again."""
    unit.quotas.remove(project)


def _chosen(asked: str | None, only: str | None) -> str | None:
    """The project to tell of; `only`: the one that the request may know.

    Raises:
        InvalidRequestError: if it asks for another.
    """
    if only is not None and asked not in (None, only):
        message = f"the API key is for project {only!r}"
        raise invalid("/query/project", "other_project", message)
    return asked or only
