"""Uploads as OpenAI's clients announce, send and complete them."""

from datetime import datetime
from typing import Literal, Self

from pydantic import Field, model_validator

from sam3_lora.config import Section
from service.api.openai.schemas.files import FileRead, Purpose, file_read
from service.api.openai.schemas.lists import unix
from service.api.schemas.lists import Read
from service.shared.db.models import Dataset, Upload
from service.usecases.uploads import MAX_PARTS, PART_BYTES

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]


class OpenAIUploadCreate(Section):
    """A file that OpenAI's clients will send in parts: `purpose` tells it from an upload of this service's own kind."""

    purpose: Purpose
    """What the file is for: a dataset is made of it."""
    filename: str = Field(min_length=1, max_length=200, examples=["pallets.zip"])
    """What the file is called; of a path, the last part."""
    bytes: int = Field(ge=1, le=MAX_PARTS * PART_BYTES, examples=[7_340_032_000])
    """Size of the whole file."""
    mime_type: Literal[
        "application/zip",
        "application/x-zip-compressed",
        "application/x-tar",
        "application/gzip",
        "application/x-gzip",
        "application/x-bzip2",
        "application/x-xz",
        "application/octet-stream",
    ]
    """Of a zip or tar archive; what the file really is, the dataset's check finds out."""


class UploadComplete(Section):
    """What an upload with a `purpose` is made of. One of this service's own kind is completed without a body."""

    part_ids: list[str] | None = Field(None, min_length=1, max_length=MAX_PARTS)
    """Ids of parts, in the order of the file."""
    md5: str | None = Field(None, pattern="^[0-9a-f]{32}$")
    """MD5 of the whole file in lower-case hexadecimal digits; checked."""

    @model_validator(mode="after")
    def _of_parts(self) -> Self:
        if self.md5 is not None and self.part_ids is None:
            raise ValueError("name the parts that md5 is of")
        return self


class OpenAIUploadPartRead(Read):
    """A part that has arrived."""

    id: str
    """Opaque: to be named in `part_ids`."""
    object: Literal["upload.part"] = "upload.part"
    upload_id: str
    """The upload."""
    created_at: int
    """When it arrived, in seconds since 1970."""


class OpenAIUploadRead(Read):
    """A file on its way, announced with a `purpose`."""

    id: str
    """Opaque."""
    object: Literal["upload"] = "upload"
    status: UploadStatus
    """How it stands."""
    filename: str
    """What the file is called."""
    bytes: int
    """Size of the whole file."""
    purpose: str
    """What the file is for: fine-tune."""
    created_at: int
    """When it was announced, in seconds since 1970."""
    expires_at: int
    """Each part that arrives moves it."""
    file: FileRead | None
    """The dataset that was made of it; null until it is completed, and once that was deleted."""


def openai_upload_read(upload: Upload, dataset: Dataset | None, now: datetime) -> OpenAIUploadRead:
    status: UploadStatus = "completed"
    if upload.completed_at is None:
        status = "expired" if upload.expires_at <= now else "pending"
    return OpenAIUploadRead(
        id=upload.id,
        status=status,
        filename=upload.filename,
        bytes=upload.size_bytes,
        purpose=upload.purpose or "",
        created_at=unix(upload.created_at),
        expires_at=unix(upload.expires_at),
        file=None if dataset is None else file_read(dataset),
    )
