"""Models: list, read, delete, and take away in several forms."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from service.api.answers import POLLED
from service.api.conditional import RequestConditions
from service.api.deps import AppServices, ReadUnit, WriteUnit
from service.api.downloads import Download, archived, download_responses, send, stored
from service.api.errors import problem_responses
from service.api.response_headers import headers
from service.api.schemas.lists import Page, page_of
from service.api.schemas.models import ExportRead, ModelQuery, ModelRead, export_read, model_read
from service.shared.db.models import Export, Model
from service.shared.errors import ExportFailedError, NotFoundError
from service.shared.states import WorkState
from service.shared.storage import Storage, StoredFile
from service.usecases.models import delete_model, find_export, request_export

router = APIRouter(prefix="/models", tags=["models"])

ModelId = Annotated[
    str, Path(max_length=64, description="The model.", examples=["model_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
]
Format = Annotated[
    Literal["native", "peft", "merged"],
    Query(
        alias="format",
        description="native: the adapter's own files in a zip. peft: a zip with a folder that peft loads onto the "
        "Sam3Model of transformers. merged: one safetensors file of the base with the adapter folded in.",
    ),
]


@router.get("", responses=problem_responses(404, 422, 503))
def list_models(unit: ReadUnit, query: Annotated[ModelQuery, Query()]) -> Page[ModelRead]:
    """Models, newest first."""
    rows, has_more = unit.models.list(
        **query.window(),
        base_model=query.base_model,
        job_id=query.job_id,
    )
    return page_of(rows, has_more, model_read, lambda read: read.id)


@router.get("/{model_id}", responses=problem_responses(404, 503))
def get_model(unit: ReadUnit, model_id: ModelId) -> ModelRead:
    """One model."""
    return model_read(unit.models.get(model_id))


@router.delete("/{model_id}", status_code=204, responses=problem_responses(404, 503))
def remove_model(unit: WriteUnit, model_id: ModelId) -> None:
    """Delete a model with its exports and predictions; the job keeps its checkpoints.

    Comparisons that have ended keep their results, those that have not fail.
    """
    delete_model(unit, model_id)


@router.head("/{model_id}/export", include_in_schema=False)
@router.get(
    "/{model_id}/export",
    response_class=StreamingResponse,
    responses={
        **download_responses(("application/zip", "application/octet-stream"), 422, 500),
        202: {
            "model": ExportRead,
            "description": "Being made: ask again after `Retry-After`",
            "headers": headers("Retry-After"),
        },
    },
)
def export_model(
    request: Request,
    found: AppServices,
    conditions: RequestConditions,
    model_id: ModelId,
    form: Format = "native",
) -> Response:
    """Download the model in one of its forms. What is not there yet is made, once, while you ask again."""
    # No transaction is open while storage is asked: it may take its time.
    if form == "native":
        with found.database.read() as unit:
            model = unit.models.get(model_id)
        return send(request, conditions, _native(found.storage, model))
    with found.database.read() as unit:
        export = find_export(unit, found.settings, model_id, form)
    if export is None and request.method == "HEAD":
        raise NotFoundError(f"The {form} form of model {model_id} has not been made yet: GET it.")
    if export is None:
        with found.database.write() as unit:
            export = request_export(unit, found.settings, model_id, form)
    if export.state is WorkState.FAILED:
        reason = (export.error or {}).get("message", "")
        raise ExportFailedError(f"The {form} form of model {model_id} could not be made: {reason}")
    if export.state is not WorkState.SUCCEEDED:
        body = export_read(export).model_dump(mode="json")
        return JSONResponse(body, 202, POLLED)
    return send(request, conditions, _made(found.storage, export))


def _native(storage: Storage, model: Model) -> Download:
    if model.archive_sha256 is None:
        raise NotFoundError(f"Model {model.id} is of an older version: download the files of its job's checkpoint.")
    filename = f"{model.id}-native.zip"
    return archived(storage, model.files, model.archive_sha256, filename=filename, created_at=model.created_at)


def _made(storage: Storage, export: Export) -> Download:
    filename = export.filename or ""
    file = StoredFile(export.storage_key or "", export.size_bytes or 0, export.sha256 or "")
    return stored(
        storage,
        file,
        filename=filename,
        media_type="application/zip" if filename.endswith(".zip") else "application/octet-stream",
        created_at=export.finished_at or export.created_at,
    )
