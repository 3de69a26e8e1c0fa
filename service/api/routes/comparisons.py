"""Comparisons of two models on one dataset: create, list, read, delete, the report and the files behind it."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.api.answers import POLL_AFTER_S, created, created_responses
from service.api.bodies import StrictJsonRoute
from service.api.conditional import RequestConditions
from service.api.deps import AppServices, IdempotencyKey, ReadUnit, WriteUnit
from service.api.downloads import download_responses, of_row, send, stored
from service.api.errors import problem_responses
from service.api.response_headers import headers
from service.api.routes.evaluation import PAGE_HEADERS
from service.api.schemas.comparisons import (
    ComparisonCreate,
    ComparisonQuery,
    ComparisonRead,
    comparison_read,
    comparison_spec,
)
from service.api.schemas.lists import Page, page_of
from service.shared.errors import NotFoundError
from service.usecases import comparisons as usecase
from service.usecases.idempotency import Answer, answer_once, fingerprint

router = APIRouter(prefix="/comparisons", tags=["comparisons"], route_class=StrictJsonRoute)

ComparisonId = Annotated[
    str, Path(max_length=64, description="The comparison.", examples=["cmp_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
]


@router.post(
    "",
    status_code=201,
    response_model=ComparisonRead,
    responses={**created_responses("Retry-After"), **problem_responses(400, 409, 413, 415, 422, 429, 503)},
    summary="Have two models measured on one dataset",
)
def create_comparison(
    unit: WriteUnit, found: AppServices, body: ComparisonCreate, idempotency_key: IdempotencyKey = None
) -> Response:
    """Have two models measured on the same images of a dataset, each asked with its own prompts, as in deployment.

    A base has no prompts of its own: it is asked with those of the other model.
    """

    def make() -> Answer:
        comparison = usecase.create_comparison(unit, found.settings, comparison_spec(body))
        read = comparison_read(comparison)
        return Answer(read.urls.self, read.model_dump(mode="json"))

    request_sha256 = fingerprint(body.model_dump(mode="json", exclude_unset=True))
    return created(answer_once(unit, "comparisons.create", idempotency_key, request_sha256, make))


@router.get("", responses=problem_responses(404, 422, 503))
def list_comparisons(unit: ReadUnit, query: Annotated[ComparisonQuery, Query()]) -> Page[ComparisonRead]:
    """Comparisons, newest first."""
    rows, has_more = unit.comparisons.list(
        **query.window(),
        states=query.status,
        dataset_id=query.dataset_id,
        model=query.model,
    )
    return page_of(rows, has_more, comparison_read, lambda read: read.id)


@router.get(
    "/{comparison_id}",
    responses={200: {"headers": headers("Retry-After")}, **problem_responses(404, 422, 503)},
)
def get_comparison(response: Response, unit: ReadUnit, comparison_id: ComparisonId) -> ComparisonRead:
    """One comparison: how far it is, and which model is better once it has succeeded."""
    read = comparison_read(unit.comparisons.get(comparison_id))
    if not read.is_terminal:
        response.headers["Retry-After"] = str(POLL_AFTER_S)
    return read


@router.delete("/{comparison_id}", status_code=204, responses=problem_responses(404, 422, 503))
def delete_comparison(found: AppServices, comparison_id: ComparisonId) -> None:
    """Delete a comparison with its report and files; one that has not ended is given up."""
    usecase.delete_comparison(found.database, found.storage, comparison_id)


@router.head("/{comparison_id}/report", include_in_schema=False)
@router.get(
    "/{comparison_id}/report",
    response_class=StreamingResponse,
    responses=download_responses("text/html", 422),
    summary="The report of a comparison",
)
def download_comparison_report(
    request: Request, unit: ReadUnit, found: AppServices, conditions: RequestConditions, comparison_id: ComparisonId
) -> Response:
    """A page that stands alone: figures, precision and recall, the images that the second model does worst on."""
    comparison = unit.comparisons.get(comparison_id)
    file = unit.comparisons.get_file(comparison_id, "report.html")
    download = stored(
        found.storage,
        of_row(file),
        filename=f"{comparison_id}-report.html",
        media_type="text/html; charset=utf-8",
        created_at=comparison.finished_at or comparison.created_at,
        inline=True,
        headers=PAGE_HEADERS,
    )
    return send(request, conditions, download)


@router.head("/{comparison_id}/evaluation/{model}/{name}", include_in_schema=False)
@router.get(
    "/{comparison_id}/evaluation/{model}/{name}",
    response_class=StreamingResponse,
    responses=download_responses("application/json", 422),
)
def download_comparison_evaluation(
    request: Request,
    unit: ReadUnit,
    found: AppServices,
    conditions: RequestConditions,
    comparison_id: ComparisonId,
    model: Annotated[str, Path(max_length=64, description="One of the two, as in `models`.")],
    name: Annotated[
        Literal["truth.json", "predictions.json", "evaluation.json"],
        Path(description="Annotations, detections of any score, or figures."),
    ],
) -> Response:
    """Ground truth, predictions or figures of a model, as COCO JSON."""
    comparison = unit.comparisons.get(comparison_id)
    numbers = {comparison.first_model: 0, comparison.second_model: 1}
    if model not in numbers:
        raise NotFoundError(f"Comparison {comparison_id!r} is not about {model!r}.")
    file = unit.comparisons.get_file(comparison_id, f"{numbers[model]}/{name}")
    download = stored(
        found.storage,
        of_row(file),
        filename=f"{model}-{name}",
        media_type="application/json",
        created_at=comparison.finished_at or comparison.created_at,
    )
    return send(request, conditions, download)
