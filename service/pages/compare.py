"""Two jobs side by side: what they were told, how they learned, what came of it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.deps import AppServices, ReadUnit
from service.api.job_views import read_jobs
from service.pages.rendering import PageRoute, page
from service.usecases.evaluation import LOWER_IS_BETTER, get_evaluation

router = APIRouter(prefix="/ui/compare", route_class=PageRoute, include_in_schema=False)

OFFERED = 50
JobId = Annotated[str, Query(max_length=64)]


@router.get("", name="page_compare")
def compare_jobs(request: Request, unit: ReadUnit, found: AppServices, first: JobId, second: JobId) -> Response:
    """The two jobs; what is the same is told once."""
    rows = [unit.jobs.get(job_id) for job_id in (first, second)]
    jobs = read_jobs(unit, found.settings, rows)
    measured = [get_evaluation(unit, job.id) for job in jobs]
    tuned = [(each.tuned or {}).get("metrics", {}) for each in measured]
    names = list(dict.fromkeys([*tuned[0], *tuned[1]]))
    others, _ = unit.jobs.list(limit=OFFERED)
    return page(
        request,
        "compare.html",
        jobs=jobs,
        others=[(job.id, job.name) for job in others],
        datasets=unit.datasets.names({job.dataset_id for job in jobs}),
        metrics=[(name, *(values.get(name) for values in tuned), _better(name, *tuned)) for name in names],
        differences=_differences(*(job.resolved["config"] for job in jobs)),
    )


def _better(name: str, first: dict[str, Any], second: dict[str, Any]) -> int | None:
    """Which of the two does better: 0 or 1."""
    one, other = first.get(name), second.get(name)
    if one is None or other is None or one == other:
        return None
    return int((other > one) != (name in LOWER_IS_BETTER))


def _differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Values of two configurations that are not the same, by path."""
    one, other = (
        {f"{section}.{name}": value for section, values in config.items() for name, value in values.items()}
        for config in (first, second)
    )
    paths = dict.fromkeys([*one, *other])
    return [(path, one.get(path), other.get(path)) for path in paths if one.get(path) != other.get(path)]
