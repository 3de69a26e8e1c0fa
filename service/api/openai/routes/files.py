"""Files: datasets under the ids that they have everywhere, and what jobs leave behind."""

import hashlib
import re
from collections.abc import Iterator
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.api.answers import created, created_responses
from service.api.archives import checked_name, form_body, receive_archive
from service.api.conditional import RequestConditions
from service.api.deps import AppServices, IdempotencyKey, ReadUnit, Services, WriteUnit
from service.api.downloads import Download, archived, download_responses, send, stored
from service.api.errors import problem_responses
from service.api.forms import FormFile
from service.api.openai.schemas.files import FileDeleted, FileQuery, FileRead, file_read, result_read
from service.api.openai.schemas.fine_tuning import METRICS_PREFIX
from service.api.schemas.lists import Page, page_of
from service.api.schemas.metrics import metrics_csv
from service.shared.db.models import Dataset
from service.shared.errors import NotFoundError, StateConflictError, invalid
from service.shared.states import TERMINAL
from service.shared.storage import Storage, StoredFile
from service.shared.unit_of_work import UnitOfWork
from service.usecases import datasets as usecase
from service.usecases.idempotency import Answer
from service.usecases.metrics import read_metrics

router = APIRouter(prefix="/files", tags=["OpenAI-compatible"])

FileId = Annotated[
    str, Path(max_length=64, description="Id of the file.", examples=["ds_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
]
MODEL_PREFIX = "model_"
SUFFIX = re.compile(r"(\.tar)?\.[A-Za-z0-9]{1,8}$")
POINTS = 10_000  # of each metric
CREATE_BODY = {"required": True, "content": form_body(purpose={"type": "string", "enum": ["fine-tune"]})}


@router.post(
    "",
    status_code=201,
    response_model=FileRead,
    responses={**created_responses("Retry-After"), **problem_responses(400, 403, 408, 413, 415, 422, 503, 507)},
    openapi_extra={"requestBody": CREATE_BODY},
)
async def create_file(request: Request, found: AppServices, idempotency_key: IdempotencyKey = None) -> Response:
    """Create a dataset of an archive. It is `uploaded` until a worker has checked it; jobs may already use it."""
    async with receive_archive(request, found, further={"purpose"}) as file:
        return created(await to_thread.run_sync(_store, found, file, idempotency_key))


@router.get("", responses=problem_responses(404, 422, 503))
def list_files(unit: ReadUnit, query: Annotated[FileQuery, Query()]) -> Page[FileRead]:
    """Datasets, newest first."""
    rows, has_more = unit.datasets.list(**query.window(descending=query.order == "desc"))
    return page_of(rows, has_more, file_read, lambda read: read.id)


@router.get("/{file_id}", responses=problem_responses(404, 503))
def get_file(unit: ReadUnit, found: AppServices, file_id: FileId) -> FileRead:
    """One file: a dataset, the metrics of a job or a tuned model."""
    if not _is_result(file_id):
        return file_read(unit.datasets.get(file_id))
    url = _owner(unit, file_id)
    return result_read(file_id, _result(unit, found.storage, file_id), url)


@router.delete("/{file_id}", responses=problem_responses(404, 409, 503))
def remove_file(unit: WriteUnit, file_id: FileId) -> FileDeleted:
    """Delete a dataset that no unfinished job needs. Files of results go with their job or model."""
    if _is_result(file_id):
        raise StateConflictError(f"File {file_id} is a result: delete {_owner(unit, file_id)}, and it goes too.")
    usecase.delete_dataset(unit, file_id)
    return FileDeleted(id=file_id)


@router.head("/{file_id}/content", include_in_schema=False)
@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses=download_responses(("application/octet-stream", "text/csv", "application/zip")),
    summary="Download the content of a file",
)
def get_file_content(
    request: Request, unit: ReadUnit, found: AppServices, conditions: RequestConditions, file_id: FileId
) -> Response:
    """Download a dataset's archive, a job's metrics as CSV, or a tuned model's adapter as zip; resumes."""
    if _is_result(file_id):
        download = _result(unit, found.storage, file_id)
    else:
        download = _archive(found.storage, unit.datasets.get(file_id))
    return send(request, conditions, download)


def _store(found: Services, file: FormFile, idempotency_key: str | None) -> Answer:
    purpose = file.fields.get("purpose")
    if purpose != "fine-tune":
        code, message = (
            ("missing", "is needed: fine-tune") if purpose is None else ("literal_error", "must be fine-tune")
        )
        raise invalid("/purpose", code, message)
    spec = usecase.DatasetSpec(checked_name(file), file.filename)
    return usecase.store_dataset(
        found.database,
        found.storage,
        spec,
        file.path,
        idempotency_key=idempotency_key,
        answer=_answer,
        operation="files.create",
    )


def _answer(dataset: Dataset) -> Answer:
    return Answer(f"/v1/files/{dataset.id}", file_read(dataset).model_dump(mode="json"))


def _is_result(file_id: str) -> bool:
    return file_id.startswith((METRICS_PREFIX, MODEL_PREFIX))


def _owner(unit: UnitOfWork, file_id: str) -> str:
    """Where the job or model is found that a file of results belongs to."""
    if file_id.startswith(METRICS_PREFIX):
        return f"/v1/jobs/{unit.jobs.get(file_id.removeprefix(METRICS_PREFIX)).id}"
    return f"/v1/models/{unit.models.get(file_id).id}"


def _result(unit: UnitOfWork, storage: Storage, file_id: str) -> Download:
    """The content of a file of results."""
    if file_id.startswith(METRICS_PREFIX):
        return _metrics(unit, file_id.removeprefix(METRICS_PREFIX))
    model = unit.models.get(file_id)
    if model.archive_sha256 is None:
        raise NotFoundError(f"Model {model.id} is of an older version: download the files of its job's checkpoint.")
    filename = f"{model.id}-native.zip"
    return archived(storage, model.files, model.archive_sha256, filename=filename, created_at=model.created_at)


def _metrics(unit: UnitOfWork, job_id: str) -> Download:
    """The metrics of a job that has ended, which no longer change."""
    job = unit.jobs.get(job_id)
    if job.state not in TERMINAL or job.finished_at is None:
        raise NotFoundError(f"Job {job_id} is {job.state}: there is a file of its metrics once it has ended.")
    metrics = read_metrics(unit, job_id, names=(), after_step=-1, before_step=None, max_points=POINTS)
    content = metrics_csv(metrics).encode()

    def read(start: int, end: int) -> Iterator[bytes]:
        return iter([content[start:end]])

    sha256 = hashlib.sha256(content).hexdigest()
    return Download(f"{job_id}-metrics.csv", "text/csv", len(content), sha256, job.finished_at, read)


def _archive(storage: Storage, dataset: Dataset) -> Download:
    if dataset.storage_key is None:
        raise NotFoundError(f"Dataset {dataset.id} has not been fetched yet.")
    suffix = SUFFIX.search(dataset.filename)
    return stored(
        storage,
        StoredFile(dataset.storage_key, dataset.size_bytes, dataset.sha256),
        filename=dataset.id + ("" if suffix is None else suffix[0]),
        media_type="application/octet-stream",
        created_at=dataset.created_at,
    )
