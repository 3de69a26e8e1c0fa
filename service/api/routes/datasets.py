"""Datasets: upload, list, read, report, delete."""

import re
from pathlib import Path as FilePath
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from service.api.deps import AppServices, IdempotencyKey, ReadUnit, Services, WriteUnit
from service.api.errors import problem_responses
from service.api.forms import FormFile, receive_form
from service.api.schemas.datasets import (
    DatasetQuery,
    DatasetRead,
    DatasetValidation,
    dataset_read,
    dataset_validation,
)
from service.api.schemas.lists import Page, page_of
from service.shared.errors import InvalidRequestError, UnsupportedMediaTypeError
from service.shared.ids import new_id
from service.shared.states import DatasetState
from service.usecases.datasets import archive_key, delete_dataset, register_dataset
from service.usecases.idempotency import Answer, answer_once, fingerprint

router = APIRouter(prefix="/datasets", tags=["datasets"])

DatasetId = Annotated[str, Path(max_length=64)]
FIELDS = frozenset({"name", "sha256"})
# zip (also an empty one), gzip, bzip2, xz
ARCHIVE_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
SHA256 = re.compile(r"[0-9a-f]{64}")
UPLOAD_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "additionalProperties": False,
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": "Zip or tar archive (gzip, bzip2 or xz) of images and COCO JSON.",
                    },
                    "name": {"type": "string", "maxLength": 200, "description": "Default: the file's name."},
                    "sha256": {
                        "type": "string",
                        "pattern": "^[0-9a-f]{64}$",
                        "description": "Expected hash of the file; an upload that arrives changed is refused.",
                    },
                },
            }
        }
    },
}


@router.post(
    "",
    status_code=201,
    response_model=DatasetRead,
    responses=problem_responses(400, 408, 413, 415, 422, 503, 507),
    openapi_extra={"requestBody": UPLOAD_BODY},
)
async def create_dataset(request: Request, found: AppServices, idempotency_key: IdempotencyKey = None) -> Response:
    """Upload a dataset. It is `processing` until a worker has checked it; jobs may already be created on it."""
    async with receive_form(
        request,
        found.settings.staging_dir,
        known_fields=FIELDS,
        max_bytes=found.settings.max_upload_bytes,
        idle_timeout_s=found.settings.upload_idle_timeout_s,
    ) as upload:
        answer = await to_thread.run_sync(_store, found, upload, idempotency_key)
    headers = {"Location": answer.location, "Retry-After": "5"}
    if answer.replayed:
        headers["Idempotent-Replayed"] = "true"
    return JSONResponse(answer.body, 201, headers)


@router.get("", responses=problem_responses(404, 422, 503))
def list_datasets(unit: ReadUnit, query: Annotated[DatasetQuery, Query()]) -> Page[DatasetRead]:
    """Datasets, newest first."""
    rows, has_more = unit.datasets.list(
        limit=query.limit,
        descending=query.order == "desc",
        after=query.after,
        before=query.before,
        states=[DatasetState(part) for part in query.status.split(",")] if query.status else [],
    )
    return page_of(rows, has_more, dataset_read, lambda read: read.id)


@router.get("/{dataset_id}", responses=problem_responses(404, 503))
def get_dataset(unit: ReadUnit, dataset_id: DatasetId) -> DatasetRead:
    """One dataset."""
    return dataset_read(unit.datasets.get(dataset_id))


@router.get("/{dataset_id}/validation", responses=problem_responses(404, 503))
def get_validation(unit: ReadUnit, dataset_id: DatasetId) -> DatasetValidation:
    """Everything that was found in the dataset; empty while it is processing."""
    return dataset_validation(unit.datasets.get(dataset_id))


@router.delete("/{dataset_id}", status_code=204, responses=problem_responses(404, 409, 503))
def remove_dataset(unit: WriteUnit, dataset_id: DatasetId) -> None:
    """Delete a dataset that no unfinished job needs."""
    delete_dataset(unit, dataset_id)


def _checked(upload: FormFile) -> str:
    """The dataset's name, if the upload is what it claims to be."""
    expected = upload.fields.get("sha256")
    if expected is not None and not SHA256.fullmatch(expected):
        raise _fault("/sha256", "invalid_sha256", "must be 64 lower-case hexadecimal digits")
    if expected is not None and expected != upload.sha256:
        raise _fault("/sha256", "sha256_mismatch", f"the file that arrived has SHA-256 {upload.sha256}")
    name = upload.fields.get("name", upload.filename)
    if not 1 <= len(name) <= 200:
        raise _fault("/name", "invalid_name", "must have 1 to 200 characters")
    if not _is_archive(upload.path):
        raise UnsupportedMediaTypeError("The file is neither a zip nor a tar archive (plain, gzip, bzip2 or xz).")
    return name


def _is_archive(path: FilePath) -> bool:
    with path.open("rb") as file:
        head = file.read(512)
    return head.startswith(ARCHIVE_MAGIC) or head[257:262] == b"ustar"


def _fault(pointer: str, code: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{pointer}: {message}", errors=[{"pointer": pointer, "code": code, "message": message}])


def _store(found: Services, upload: FormFile, idempotency_key: str | None) -> Answer:
    name = _checked(upload)
    dataset_id = new_id("ds")
    # Before the transaction: a large file must not hold up other writers.
    archive = found.storage.put_file(archive_key(dataset_id), upload.path)
    stored = False
    try:
        with found.database.write() as unit:

            def create() -> Answer:
                dataset = register_dataset(unit, dataset_id, name=name, filename=upload.filename, archive=archive)
                return Answer(f"/v1/datasets/{dataset_id}", dataset_read(dataset).model_dump(mode="json"))

            request_sha256 = fingerprint({"name": name, "file": upload.sha256})
            answer = answer_once(unit, "datasets.create", idempotency_key, request_sha256, create)
        stored = not answer.replayed
    finally:
        if not stored:
            found.storage.delete(archive.key)
    return answer
