"""Datasets as clients see them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from service.api.schemas.lists import PageQuery, Read
from service.shared.db.models import Dataset
from service.shared.states import DatasetState


def choices(kind: type[Any]) -> AfterValidator:
    """Validates a comma-separated list of an enumeration's values."""

    def check(value: str | None) -> str | None:
        known = [member.value for member in kind]
        for part in value.split(",") if value is not None else []:
            if part not in known:
                raise ValueError(f"unknown status {part[:40]!r}; known: {', '.join(known)}")
        return value

    return AfterValidator(check)


class DatasetQuery(PageQuery):
    status: Annotated[str | None, choices(DatasetState)] = Field(None, max_length=200, examples=["ready"])
    """Only datasets in these states, separated by commas."""


class DatasetUrls(Read):
    self: str
    validation: str


class DatasetRead(Read):
    """An uploaded dataset. `ready` ones can be trained on; `invalid` ones have a report that says why not."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: str
    status: DatasetState
    filename: str
    bytes: int
    sha256: str
    summary: dict[str, Any] | None
    """Counts of the validation report, once there is one."""
    error: dict[str, Any] | None
    """Why the check itself failed: `{code, message, hint, retryable}`."""
    created_at: datetime
    finished_at: datetime | None
    """When the check ended."""
    urls: DatasetUrls


class DatasetValidation(Read):
    """The report of a dataset's check: every problem that was found, with where it is and what to do."""

    object: Literal["dataset.validation"] = "dataset.validation"
    dataset_id: str
    status: DatasetState
    summary: dict[str, Any] | None = None
    issues: list[dict[str, Any]]
    stats: dict[str, Any] | None = None


def dataset_read(dataset: Dataset) -> DatasetRead:
    url = f"/v1/datasets/{dataset.id}"
    return DatasetRead(
        id=dataset.id,
        name=dataset.name,
        status=dataset.state,
        filename=dataset.filename,
        bytes=dataset.size_bytes,
        sha256=dataset.sha256,
        summary=(dataset.report or {}).get("summary"),
        error=dataset.error,
        created_at=dataset.created_at,
        finished_at=dataset.finished_at,
        urls=DatasetUrls(self=url, validation=f"{url}/validation"),
    )


def dataset_validation(dataset: Dataset) -> DatasetValidation:
    report = dataset.report or {}
    return DatasetValidation(
        dataset_id=dataset.id,
        status=dataset.state,
        summary=report.get("summary"),
        issues=report.get("issues", []),
        stats=report.get("stats"),
    )
