"""Models as clients see them."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from service.api.downloads import archive_layout
from service.api.schemas.checkpoints import ArchiveRead
from service.api.schemas.lists import PageQuery, Read
from service.shared.db.models import Export, Model
from service.shared.states import WorkState


class ModelQuery(PageQuery):
    base_model: str | None = Field(None, max_length=64, examples=["sam3"])
    """Only models tuned from this base."""
    job_id: str | None = Field(None, max_length=64)
    """Only the model of this job."""


class ModelFileRead(Read):
    name: str
    bytes: int
    sha256: str


class ModelUrls(Read):
    self: str
    predict: str
    export: str
    job: str | None


class ModelRead(Read):
    """The best adapter of a job that succeeded, ready to be asked and to be taken away."""

    id: str
    object: Literal["model"] = "model"
    name: str
    """The job's."""
    job_id: str | None
    """Null once the job was deleted."""
    base_model: str
    epoch: int
    step: int
    metric: str | None
    value: float | None
    """Of `metric` on the validation images."""
    files: list[ModelFileRead]
    """The adapter, as the export in format `native` holds it."""
    archive: ArchiveRead | None
    """The export in format `native`."""
    created_at: datetime
    urls: ModelUrls


class ExportRead(Read):
    """A model in another form that is still being made."""

    object: Literal["model.export"] = "model.export"
    model_id: str
    format: str
    status: WorkState
    created_at: datetime


def model_read(model: Model) -> ModelRead:
    url = f"/v1/models/{model.id}"
    archive = None
    if model.archive_sha256 is not None:
        size_bytes = archive_layout(model.files).size_bytes
        archive = ArchiveRead(bytes=size_bytes, sha256=model.archive_sha256, url=f"{url}/export?format=native")
    return ModelRead(
        id=model.id,
        name=model.name,
        job_id=model.job_id,
        base_model=model.base_model,
        epoch=model.epoch,
        step=model.step,
        metric=model.metric,
        value=model.value,
        files=[ModelFileRead(name=file.name, bytes=file.size_bytes, sha256=file.sha256) for file in model.files],
        archive=archive,
        created_at=model.created_at,
        urls=ModelUrls(
            self=url,
            predict=f"{url}/predict",
            export=f"{url}/export",
            job=None if model.job_id is None else f"/v1/jobs/{model.job_id}",
        ),
    )


def export_read(export: Export) -> ExportRead:
    return ExportRead(model_id=export.model_id, format=export.format, status=export.state, created_at=export.created_at)
