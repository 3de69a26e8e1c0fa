"""Checkpoints as clients see them."""

from datetime import datetime
from typing import Literal

from service.api.downloads import archive_layout
from service.api.schemas.lists import Read
from service.shared.db.models import Checkpoint


class CheckpointFileRead(Read):
    name: str
    bytes: int
    sha256: str
    url: str


class ArchiveRead(Read):
    """All files as one zip archive, byte for byte the same at every download."""

    bytes: int
    sha256: str
    url: str


class CheckpointRead(Read):
    """A saved adapter: `best`, or the one of an epoch, which training can go on from."""

    id: str
    object: Literal["checkpoint"] = "checkpoint"
    job_id: str
    attempt: int
    kind: str
    epoch: int
    step: int
    metric: str | None
    value: float | None
    files: list[CheckpointFileRead]
    archive: ArchiveRead | None
    """Null for a checkpoint of an older version of this service."""
    created_at: datetime


class CheckpointList(Read):
    object: Literal["list"] = "list"
    data: list[CheckpointRead]


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
