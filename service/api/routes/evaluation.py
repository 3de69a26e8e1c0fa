"""What validation found: base against tuned, the files behind it, and the report of the run."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.api.conditional import RequestConditions
from service.api.deps import AppServices, ReadUnit
from service.api.downloads import download_responses, of_row, send, stored
from service.api.errors import problem_responses
from service.api.schemas.evaluation import EvaluationRead, evaluation_read
from service.usecases.evaluation import get_evaluation

router = APIRouter(prefix="/jobs", tags=["jobs"])

JobId = Annotated[str, Path(max_length=64, description="The job.")]
# What the page needs and nothing else: it is made of a dataset's names and pictures and runs no script.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox",
    "Referrer-Policy": "no-referrer",
}


@router.get("/{job_id}/evaluation", responses=problem_responses(404, 503))
def read_evaluation(unit: ReadUnit, job_id: JobId) -> EvaluationRead:
    """Base model against tuned model, overall, by category and by epoch; `pending` while nothing was measured."""
    found = get_evaluation(unit, job_id)
    return evaluation_read(job_id, found, list(unit.artifacts.list(job_id, "evaluation")))


@router.head("/{job_id}/evaluation/{model}/{name}", include_in_schema=False)
@router.get(
    "/{job_id}/evaluation/{model}/{name}",
    response_class=StreamingResponse,
    responses=download_responses("application/json"),
    summary="Files behind an evaluation, as COCO JSON",
)
def download_evaluation(
    request: Request,
    unit: ReadUnit,
    found: AppServices,
    conditions: RequestConditions,
    job_id: JobId,
    model: Annotated[Literal["base", "tuned"], Path(description="The base model, or the best checkpoint.")],
    name: Annotated[
        Literal["truth.json", "predictions.json", "evaluation.json"],
        Path(description="Annotations, detections of any score, or figures."),
    ],
) -> Response:
    """Ground truth, predictions or figures of a model on the validation images, as COCO JSON."""
    unit.jobs.get(job_id)
    file = unit.artifacts.get(job_id, f"evaluation/{model}/{name}")
    download = stored(
        found.storage,
        of_row(file),
        filename=f"{model}-{name}",
        media_type="application/json",
        created_at=file.created_at,
    )
    return send(request, conditions, download)


@router.head("/{job_id}/report", include_in_schema=False)
@router.get(
    "/{job_id}/report",
    response_class=StreamingResponse,
    responses=download_responses(("text/html", "application/json")),
)
def download_report(
    request: Request,
    unit: ReadUnit,
    found: AppServices,
    conditions: RequestConditions,
    job_id: JobId,
    form: Annotated[
        Literal["html", "json"],
        Query(alias="format", description="A page that stands alone, or the figures of the run."),
    ] = "html",
) -> Response:
    """The report of a run that has ended: figures, curves, the worst images."""
    unit.jobs.get(job_id)
    file = unit.artifacts.get(job_id, f"report.{form}")
    media_type = "text/html; charset=utf-8" if form == "html" else "application/json"
    download = stored(
        found.storage,
        of_row(file),
        filename=f"{job_id}-report.{form}",
        media_type=media_type,
        created_at=file.created_at,
        inline=True,
        headers=PAGE_HEADERS if form == "html" else None,
    )
    return send(request, conditions, download)
