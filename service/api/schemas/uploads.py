"""Uploads in parts as clients announce and see them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field

from sam3_lora.config import Section
from service.api.schemas.lists import Read
from service.shared.db.models import Upload, UploadPart

MIB = 2**20
UploadStatus = Literal["pending", "completed", "expired"]


class UploadCreate(Section):
    """A file that will be sent in parts."""

    filename: str = Field(min_length=1, max_length=200, examples=["pallets.zip"])
    """What the file is called; of a path, the last part."""
    bytes: int = Field(ge=1, le=2**50, examples=[7_340_032_000])
    """Size of the whole file."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the whole file in lower-case hexadecimal digits; checked on completion."""
    part_bytes: int | None = Field(None, ge=64 * 1024, le=1024 * MIB, examples=[64 * MIB])
    """Size of every part but the last; null: 64 MiB, or as much as makes at most 10,000 parts."""


class UploadPartRead(Read):
    """A part that has arrived."""

    object: Literal["upload.part"] = "upload.part"
    upload_id: str
    """The upload."""
    number: int
    """From 1."""
    bytes: int
    """Size of the part."""
    sha256: str
    """SHA-256 of the part."""


class UploadUrls(Read):
    self: str
    """The upload."""
    part: str
    """Replace `{number}` and PUT the part's bytes there."""
    complete: str
    """POST there once all parts have arrived."""


class UploadRead(Read):
    """A file on its way. Send again what is not in `parts`, in any order, then complete it."""

    id: str
    """Opaque."""
    object: Literal["upload"] = "upload"
    status: UploadStatus
    """Only a `completed` upload can become a dataset; it stays so until it expires."""
    filename: str
    """What the file is called."""
    bytes: int
    """Size of the whole file."""
    sha256: str | None
    """As announced; of the whole file once it is completed."""
    part_bytes: int
    """Size of every part but the last."""
    part_count: int
    """Parts of the whole file."""
    parts: list[UploadPartRead]
    """The parts that have arrived, in order; empty once the upload is completed."""
    created_at: datetime
    """When it was announced."""
    expires_at: datetime
    """Each part that arrives moves it."""
    completed_at: datetime | None
    """When its parts were put together; null until then."""
    urls: UploadUrls
    """Where to go on."""


class UploadListed(Read):
    """A file on its way, without its parts; read it for those."""

    id: str
    """Opaque."""
    object: Literal["upload"] = "upload"
    """Always `upload`."""
    status: UploadStatus
    """Only a `completed` upload can become a dataset; it stays so until it expires."""
    filename: str
    """What the file is called."""
    bytes: int
    """Size of the whole file, which counts as stored until the upload is deleted or expires."""
    created_at: datetime
    """When it was announced."""
    expires_at: datetime
    """Each part that arrives moves it."""
    completed_at: datetime | None
    """When its parts were put together."""
    url: str
    """Where it is read, and deleted."""


def upload_listed(upload: Upload, now: datetime) -> UploadListed:
    return UploadListed(
        id=upload.id,
        status=_status(upload, now),
        filename=upload.filename,
        bytes=upload.size_bytes,
        created_at=upload.created_at,
        expires_at=upload.expires_at,
        completed_at=upload.completed_at,
        url=f"/v1/uploads/{upload.id}",
    )


def upload_read(upload: Upload, parts: Sequence[UploadPart], now: datetime) -> UploadRead:
    url = f"/v1/uploads/{upload.id}"
    return UploadRead(
        id=upload.id,
        status=_status(upload, now),
        filename=upload.filename,
        bytes=upload.size_bytes,
        sha256=upload.sha256,
        part_bytes=upload.part_bytes,
        part_count=upload.part_count,
        parts=[part_read(part) for part in parts],
        created_at=upload.created_at,
        expires_at=upload.expires_at,
        completed_at=upload.completed_at,
        urls=UploadUrls(self=url, part=f"{url}/parts/{{number}}", complete=f"{url}/complete"),
    )


def _status(upload: Upload, now: datetime) -> UploadStatus:
    if upload.expires_at <= now:
        return "expired"
    return "pending" if upload.completed_at is None else "completed"


def part_read(part: UploadPart) -> UploadPartRead:
    return UploadPartRead(upload_id=part.upload_id, number=part.number, bytes=part.size_bytes, sha256=part.sha256)
