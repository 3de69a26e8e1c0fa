"""Checkpoints as clients see them."""

from datetime import datetime
from typing import Literal

from service.api.schemas.lists import Read
from service.shared.db.models import Checkpoint


class CheckpointFileRead(Read):
    name: str
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
        created_at=checkpoint.created_at,
    )
