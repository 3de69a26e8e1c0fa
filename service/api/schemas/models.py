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
    """In the archive."""
    bytes: int
    """Size."""
    sha256: str
    """Hash of the file."""


class ModelUrls(Read):
    self: str
    """The model."""
    predict: str
    """Where it is asked about images."""
    export: str
    """Where it is downloaded."""
    job: str | None
    """The job that trained it; null once that was deleted."""


class ModelRead(Read):
    """The best adapter of a job that succeeded, ready to be asked and to be taken away."""

    id: str
    """Opaque."""
    object: Literal["model"] = "model"
    """Always `model`."""
    name: str
    """The job's."""
    project: str
    """Whose it is."""
    job_id: str | None
    """Null once the job was deleted."""
    base_model: str
    """The model that was tuned."""
    epoch: int
    """Training epoch of its checkpoint."""
    step: int
    """Optimiser steps taken until then."""
    metric: str | None
    """By which it was the best; null for a job without validation."""
    value: float | None
    """Of `metric` on the validation images."""
    files: list[ModelFileRead]
    """The adapter, as the export in format `native` holds it."""
    archive: ArchiveRead | None
    """The export in format `native`."""
    created_at: datetime
    """When its job succeeded."""
    created: int
    """The same in seconds since 1970, as OpenAI's clients read it."""
    owned_by: str
    """Its project."""
    urls: ModelUrls
    """What can be done with it."""


class ExportRead(Read):
    """A model in another form that is still being made."""

    object: Literal["model.export"] = "model.export"
    """Always `model.export`."""
    model_id: str
    """The model."""
    format: str
    """peft or merged."""
    status: WorkState
    """queued or running."""
    created_at: datetime
    """When it was first asked for."""


def model_read(model: Model) -> ModelRead:
    url = f"/v1/models/{model.id}"
    archive = None
    if model.archive_sha256 is not None:
        size_bytes = archive_layout(model.files).size_bytes
        archive = ArchiveRead(bytes=size_bytes, sha256=model.archive_sha256, url=f"{url}/export?format=native")
    return ModelRead(
        id=model.id,
        name=model.name,
        project=model.project,
        job_id=model.job_id,
        base_model=model.base_model,
        epoch=model.epoch,
        step=model.step,
        metric=model.metric,
        value=model.value,
        files=[ModelFileRead(name=file.name, bytes=file.size_bytes, sha256=file.sha256) for file in model.files],
        archive=archive,
        created_at=model.created_at,
        created=int(model.created_at.timestamp()),
        owned_by=model.project,
        urls=ModelUrls(
            self=url,
            predict=f"{url}/predict",
            export=f"{url}/export",
            job=None if model.job_id is None else f"/v1/jobs/{model.job_id}",
        ),
    )


def export_read(export: Export) -> ExportRead:
    return ExportRead(model_id=export.model_id, format=export.format, status=export.state, created_at=export.created_at)
