"""Checkpoints as clients see them."""

from datetime import datetime
from typing import Literal

from service.api.downloads import archive_layout
from service.api.schemas.lists import Read
from service.shared.db.models import Checkpoint


class CheckpointFileRead(Read):
    name: str
    """In the folder of the checkpoint."""
    bytes: int
    """Size."""
    sha256: str
    """Hash of the file, which is also its entity tag."""
    url: str
    """Where it is downloaded."""


class ArchiveRead(Read):
    """All files as one zip archive, byte for byte the same at every download."""

    bytes: int
    """Size."""
    sha256: str
    """Hash of the archive, which is also its entity tag."""
    url: str
    """Where it is downloaded."""


class CheckpointRead(Read):
    """A saved adapter: `best`, or the one of an epoch, which training can go on from."""

    id: str
    """Opaque."""
    object: Literal["checkpoint"] = "checkpoint"
    """Always `checkpoint`."""
    job_id: str
    """The job that saved it."""
    attempt: int
    """The attempt that saved it."""
    kind: str
    """best, epoch, or interrupt where the job was paused or moved."""
    epoch: int
    """Counts from 1."""
    step: int
    """Optimiser steps taken until then."""
    metric: str | None
    """By which checkpoints are compared."""
    value: float | None
    """Of the metric; null where it was not measured."""
    files: list[CheckpointFileRead]
    """Adapter and, to go on from it, the training state."""
    archive: ArchiveRead | None
    """Null for a checkpoint of an older version of this service."""
    created_at: datetime
    """When it was published."""


def checkpoint_read(checkpoint: Checkpoint) -> CheckpointRead:
    return CheckpointRead(
        id=checkpoint.id,
        job_id=checkpoint.job_id,
        attempt=checkpoint.attempt,
        kind=checkpoint.kind,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        metric=checkpoint.metric,
        value=checkpoint.value,
        files=[
            CheckpointFileRead(
                name=file.name,
                bytes=file.size_bytes,
                sha256=file.sha256,
                url=f"/v1/checkpoints/{checkpoint.id}/files/{file.name}",
            )
            for file in checkpoint.files
        ],
        archive=_archive(checkpoint),
        created_at=checkpoint.created_at,
    )


def _archive(checkpoint: Checkpoint) -> ArchiveRead | None:
    if checkpoint.archive_sha256 is None:
        return None
    return ArchiveRead(
        bytes=archive_layout(checkpoint.files).size_bytes,
        sha256=checkpoint.archive_sha256,
        url=f"/v1/checkpoints/{checkpoint.id}/archive",
    )
