"""Datasets: the list with uploads, and one with its report, its images and its classes."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from service.api.deps import AppServices, ReadUnit
from service.api.job_views import read_jobs
from service.api.schemas.datasets import dataset_preview, dataset_read, dataset_validation
from service.pages.paging import SHOWN, Cursor, ways
from service.pages.rendering import PageRoute, page_or_part
from service.shared.db.repositories.job_filters import JobFilter
from service.shared.states import DatasetState
from service.usecases.recipes import find_recipe

router = APIRouter(prefix="/ui/datasets", route_class=PageRoute, include_in_schema=False)

PICTURES_SHOWN = 24
JOBS_SHOWN = 10
DatasetId = Annotated[str, Path(max_length=64)]


@router.get("", name="page_datasets")
def show_datasets(
    request: Request, unit: ReadUnit, found: AppServices, after: Cursor = None, before: Cursor = None
) -> Response:
    """Datasets, newest first."""
    rows, more = unit.datasets.list(limit=SHOWN, after=after, before=before)
    return page_or_part(
        request,
        "datasets",
        datasets=[dataset_read(row) for row in rows],
        max_bytes=found.settings.max_upload_bytes,
        query=request.url.query,
        **ways(rows, more=more, after=after, before=before),
    )


@router.get("/{dataset_id}", name="page_dataset")
def show_dataset(request: Request, unit: ReadUnit, found: AppServices, dataset_id: DatasetId) -> Response:
    """One dataset: what its check found, what is in it, and the jobs that trained on it."""
    row = unit.datasets.get(dataset_id)
    report = dataset_validation(row)
    issues = sorted(report.issues, key=lambda issue: (issue["severity"] != "error", issue["code"]))
    jobs, _ = unit.jobs.list(limit=JOBS_SHOWN, matching=JobFilter(dataset_id=dataset_id))
    base = found.settings.base_models[0]
    return page_or_part(
        request,
        "dataset",
        dataset=dataset_read(row),
        stats=report.stats,
        issues=[(code, list(group)) for code, group in groupby(issues, key=lambda issue: issue["code"])],
        pictures=dataset_preview(row, split=None, limit=PICTURES_SHOWN).data,
        jobs=read_jobs(unit, found.settings, jobs),
        base=base,
        suggested=find_recipe(found.settings, base).template,
        is_processing=row.state is DatasetState.PROCESSING,
    )
