"""Files: datasets, and what jobs leave behind."""

from typing import Any, Literal

from pydantic import Field

from service.api.downloads import Download
from service.api.openai.schemas.lists import Cursor, unix
from service.api.schemas.lists import Read
from service.shared.db.models import Dataset
from service.shared.states import DatasetState

Purpose = Literal["fine-tune"]
FileStatus = Literal["uploaded", "processed", "error"]
STATUS: dict[DatasetState, FileStatus] = {
    DatasetState.PROCESSING: "uploaded",
    DatasetState.READY: "processed",
    DatasetState.INVALID: "error",
    DatasetState.FAILED: "error",
}
ISSUES_NAMED = 3


class FileQuery(Cursor):
    limit: int = Field(100, ge=1, le=10_000)
    """Largest number of items. A page has 100 at most; `has_more` tells whether others follow."""
    order: Literal["asc", "desc"] = "desc"
    """By time of creation."""
    purpose: Purpose | None = None
    """Lists hold datasets alone; what a job leaves behind is named in its `result_files`."""


class NativeFile(Read):
    """The same, as this service's own API has it."""

    status: str
    """Of a dataset: processing, ready, invalid or failed; else `ready`."""
    url: str
    """Where more is said about it."""


class FileRead(Read):
    """A dataset (`ds_...`), the metrics of a job that has ended (`metrics_job_...`), or a tuned model (`model_...`)."""

    id: str
    """Opaque; of a dataset, the same as in `/datasets`."""
    object: Literal["file"] = "file"
    bytes: int
    """Size of its content; 0 until a dataset has been fetched from where it comes from."""
    created_at: int
    """In seconds since 1970."""
    expires_at: int | None = None
    """Always null: a file stays until it is deleted, or its operator's time for unused datasets has passed."""
    filename: str
    """What it is called."""
    purpose: Literal["fine-tune", "fine-tune-results"]
    """fine-tune: a dataset; fine-tune-results: what a job left behind."""
    status: FileStatus
    """Of a dataset: `processed` can be trained on, `error` has failed its check, `uploaded` is being checked."""
    status_details: str | None
    """Why it is in `error`: the first problems. `native.url` leads to all of them."""
    native: NativeFile
    """The same, as this service has it."""


class FileDeleted(Read):
    id: str
    """The file."""
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
    """Always true."""


def file_read(dataset: Dataset) -> FileRead:
    return FileRead(
        id=dataset.id,
        bytes=dataset.size_bytes,
        created_at=unix(dataset.created_at),
        filename=dataset.filename,
        purpose="fine-tune",
        status=STATUS[dataset.state],
        status_details=_details(dataset),
        native=NativeFile(status=dataset.state, url=f"/v1/datasets/{dataset.id}"),
    )


def result_read(file_id: str, download: Download, url: str) -> FileRead:
    return FileRead(
        id=file_id,
        bytes=download.size_bytes,
        created_at=unix(download.created_at),
        filename=download.filename,
        purpose="fine-tune-results",
        status="processed",
        status_details=None,
        native=NativeFile(status=DatasetState.READY, url=url),
    )


def _details(dataset: Dataset) -> str | None:
    if dataset.state is DatasetState.FAILED:
        error = dataset.error or {}
        return f"{error.get('message', '')} {error.get('hint', '')}".strip()
    if dataset.state is not DatasetState.INVALID:
        return None
    report: dict[str, Any] = dataset.report or {}
    errors = [issue for issue in report.get("issues", []) if issue.get("severity") == "error"]
    found = report.get("summary", {}).get("errors", len(errors))
    named = "; ".join(f"{issue.get('file') or 'archive'}: {issue['message']}" for issue in errors[:ISSUES_NAMED])
    return f"{found} errors: {named}. All of them: /v1/datasets/{dataset.id}/validation"
