"""Datasets: create, list, read, report, preview, delete."""

import re
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Query, Request, Response

from service.api.answers import POLLED, created, created_responses
from service.api.archives import checked_name, form_body, receive_archive
from service.api.bodies import is_json, parse_json, read_json_body, validated
from service.api.conditional import names
from service.api.deps import AppServices, IdempotencyKey, ReadUnit, Services, WriteUnit
from service.api.errors import problem_responses
from service.api.forms import FormFile
from service.api.response_headers import headers as described
from service.api.schemas.datasets import (
    DatasetCreate,
    DatasetPreview,
    DatasetQuery,
    DatasetRead,
    DatasetValidation,
    dataset_preview,
    dataset_read,
    dataset_validation,
)
from service.api.schemas.lists import Page, page_of
from service.shared.dataset_files import preview_key
from service.shared.db.models import Dataset
from service.shared.errors import InvalidRequestError, NotFoundError
from service.shared.states import DatasetState
from service.usecases import datasets as usecase
from service.usecases.idempotency import Answer, answer_once, fingerprint

router = APIRouter(prefix="/datasets", tags=["datasets"])

DatasetId = Annotated[
    str, Path(max_length=64, description="The dataset.", examples=["ds_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
]
MAX_PREVIEW = 100
CREATE_BODY = {
    "required": True,
    "content": {
        **form_body(),
        "application/json": {"schema": {"$ref": "#/components/schemas/DatasetCreate"}},
    },
}


@router.post(
    "",
    status_code=201,
    response_model=DatasetRead,
    responses={**created_responses("Retry-After"), **problem_responses(400, 403, 408, 413, 415, 422, 503, 507)},
    openapi_extra={"requestBody": CREATE_BODY},
    summary="Create a dataset",
)
async def create_dataset(request: Request, found: AppServices, idempotency_key: IdempotencyKey = None) -> Response:
    """Create a dataset of an archive in a form, or as JSON of one that lies elsewhere.

    It is `processing` until a worker has fetched and checked it; jobs may already be created on it.
    """
    if is_json(request):
        body = _read_create(parse_json(await read_json_body(request)))
        answer = await to_thread.run_sync(_create, found, body, idempotency_key)
    else:
        async with receive_archive(request, found) as file:
            answer = await to_thread.run_sync(_store, found, file, idempotency_key)
    return created(answer)


@router.get("", responses=problem_responses(404, 422, 503))
def list_datasets(unit: ReadUnit, query: Annotated[DatasetQuery, Query()]) -> Page[DatasetRead]:
    """Datasets, newest first."""
    rows, has_more = unit.datasets.list(
        **query.window(),
        states=query.status,
    )
    return page_of(rows, has_more, dataset_read, lambda read: read.id)


@router.get("/{dataset_id}", responses=problem_responses(404, 503))
def get_dataset(unit: ReadUnit, dataset_id: DatasetId, response: Response) -> DatasetRead:
    """One dataset."""
    read = dataset_read(unit.datasets.get(dataset_id))
    if read.status is DatasetState.PROCESSING:
        response.headers.update(POLLED)
    return read


@router.get("/{dataset_id}/validation", responses=problem_responses(404, 503))
def get_validation(unit: ReadUnit, dataset_id: DatasetId) -> DatasetValidation:
    """Everything that was found in the dataset; empty while it is processing."""
    return dataset_validation(unit.datasets.get(dataset_id))


@router.get("/{dataset_id}/preview", responses=problem_responses(404, 422, 503))
def list_preview(
    unit: ReadUnit,
    dataset_id: DatasetId,
    split: Annotated[
        Literal["train", "validation", "test"] | None, Query(description="Only pictures of this split.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PREVIEW, description="Largest number of pictures.")] = 20,
) -> DatasetPreview:
    """Images spread over each split, with their annotations drawn; none while the dataset is processing."""
    return dataset_preview(unit.datasets.get(dataset_id), split=split, limit=limit)


@router.get(
    "/{dataset_id}/preview/{number}",
    response_class=Response,
    responses={
        200: {
            "content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}},
            "headers": described("ETag", "Cache-Control"),
        },
        304: {"description": "Not modified", "headers": described("ETag", "Cache-Control")},
        **problem_responses(404, 422, 503),
    },
)
def get_preview(
    unit: ReadUnit,
    found: AppServices,
    dataset_id: DatasetId,
    number: Annotated[int, Path(ge=0, le=MAX_PREVIEW, description="In the list of all pictures, from 0.")],
    if_none_match: Annotated[str | None, Header(description="Send none of these versions, but 304.")] = None,
) -> Response:
    """One picture. It never changes."""
    dataset = unit.datasets.get(dataset_id)
    pictures = dataset.preview or []
    if number >= len(pictures) or dataset.storage_key is None:
        raise NotFoundError(f"Dataset {dataset_id} has {len(pictures)} pictures, no number {number}.")
    etag = f'"{pictures[number]["sha256"]}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=86400, immutable"}
    if names(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    content = b"".join(found.storage.get_range(preview_key(dataset.storage_key, number)))
    return Response(content, headers=headers, media_type="image/webp")


@router.delete("/{dataset_id}", status_code=204, responses=problem_responses(404, 409, 503))
def remove_dataset(unit: WriteUnit, dataset_id: DatasetId) -> None:
    """Delete a dataset that no unfinished job needs."""
    usecase.delete_dataset(unit, dataset_id)


def _read_create(value: Any) -> DatasetCreate:
    try:
        return validated(DatasetCreate, value)
    except InvalidRequestError as error:
        # A choice among sources puts the one that was chosen into the path of a fault.
        for fault in error.errors:
            fault["pointer"] = re.sub(r"^/source/(upload|uri|path)(?=/)", "/source", fault["pointer"])
        raise


def _create(found: Services, body: DatasetCreate, idempotency_key: str | None) -> Answer:
    with found.database.write() as unit:
        request_sha256 = fingerprint(body.model_dump(mode="json"))

        def make() -> Answer:
            source = body.source.model_dump(mode="json")
            return _answer(usecase.create_dataset(unit, found.settings, source, name=body.name, sha256=body.sha256))

        return answer_once(unit, "datasets.create", idempotency_key, request_sha256, make)


def _store(found: Services, file: FormFile, idempotency_key: str | None) -> Answer:
    spec = usecase.DatasetSpec(checked_name(file), file.filename)
    return usecase.store_dataset(
        found.database, found.storage, spec, file.path, idempotency_key=idempotency_key, answer=_answer
    )


def _answer(dataset: Dataset) -> Answer:
    read = dataset_read(dataset)
    return Answer(read.urls.self, read.model_dump(mode="json"))
