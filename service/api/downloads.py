"""Sending stored files: resumable, revalidatable, and verifiable against their hash."""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Any, Protocol

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from service.api.conditional import (
    Conditions,
    UnsatisfiableRangeError,
    Version,
    forbids,
    has_already,
    requested_range,
)
from service.api.errors import problem, problem_responses
from service.api.response_headers import headers
from service.shared.errors import NotFoundError, StorageError
from service.shared.storage import Storage, StoredFile
from service.shared.zip_layout import Member, ZipLayout


class Kept(Protocol):
    """A row of a file that is complete in storage."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    @property
    def storage_key(self) -> str: ...


class Packed(Kept, Protocol):
    """A row of a file that an archive can hold."""

    @property
    def name(self) -> str: ...

    @property
    def crc32(self) -> int | None: ...


@dataclass(frozen=True)
class Download:
    """What is sent; it never changes under its hash."""

    filename: str
    media_type: str
    size_bytes: int
    sha256: str
    created_at: datetime
    open: Callable[[int, int], Iterator[bytes]]
    """Begins to read from a first byte up to, without, a last one; raises StorageError if the file is damaged."""
    inline: bool = False
    """Shown by a browser instead of saved."""
    headers: dict[str, str] = field(default_factory=dict)


KEPT = ("ETag", "Last-Modified", "Cache-Control")
"""Headers that are also sent with 304."""
SENT = (*KEPT, "Repr-Digest", "Accept-Ranges", "Content-Disposition")
BYTES = {"type": "string", "format": "binary"}
SCHEMAS = {"application/json": {"type": ["object", "array"]}, "text/csv": {"type": "string"}}
"""Of what is no mere bytes."""


def download_responses(media_types: str | Sequence[str], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the answers of `send`, and of further problems."""
    kinds = [media_types] if isinstance(media_types, str) else media_types
    ranged = {kind: {"schema": BYTES} for kind in kinds}
    whole = {kind: {"schema": SCHEMAS.get(kind, BYTES)} for kind in kinds}
    return {
        200: {"description": "All of it", "content": whole, "headers": headers(*SENT)},
        206: {"description": "The requested range", "content": ranged, "headers": headers(*SENT, "Content-Range")},
        304: {"description": "Not modified", "headers": headers(*KEPT)},
        **problem_responses(404, 412, 416, 503, *statuses),
    }


def of_row(row: Kept) -> StoredFile:
    return StoredFile(row.storage_key, row.size_bytes, row.sha256)


def stored(
    storage: Storage,
    file: StoredFile,
    *,
    filename: str,
    media_type: str,
    created_at: datetime,
    inline: bool = False,
    headers: dict[str, str] | None = None,
) -> Download:
    """One file of storage."""

    def read(start: int, end: int) -> Iterator[bytes]:
        _check(storage, file, filename)
        return storage.get_range(file.key, start, end)

    return Download(
        filename, media_type, file.size_bytes, file.sha256, created_at, read, inline=inline, headers=headers or {}
    )


def media_type_of(filename: str) -> str:
    return "application/json" if filename.endswith(".json") else "application/octet-stream"


def archived(
    storage: Storage, files: Sequence[Packed], sha256: str, *, filename: str, created_at: datetime
) -> Download:
    """A zip archive of several files, whose hash is known."""
    by_name = {file.name: file for file in files}
    layout = archive_layout(files)

    def read_member(name: str, start: int, end: int) -> Iterator[bytes]:
        return storage.get_range(by_name[name].storage_key, start, end)

    def read(start: int, end: int) -> Iterator[bytes]:
        for file in files:
            _check(storage, of_row(file), file.name)
        return layout.read(start, end, read_member)

    return Download(filename, "application/zip", layout.size_bytes, sha256, created_at, read)


def archive_layout(files: Sequence[Packed]) -> ZipLayout:
    """The layout of the archive of these files, whose CRCs are known."""
    return ZipLayout([Member(file.name, file.size_bytes, file.crc32 or 0) for file in files])


def send(request: Request, conditions: Conditions, download: Download) -> Response:
    """The answer to GET or HEAD."""
    version = Version(f'"{download.sha256}"', download.created_at)
    sent = _headers(download, version)
    if forbids(conditions, version):
        detail = f"The tag of the file is {version.etag}, and it is of {version.last_modified}."
        return problem(request, 412, "precondition_failed", "Precondition failed", detail)
    if has_already(conditions, version):
        return Response(status_code=304, headers={name: sent[name] for name in KEPT})
    if request.method == "HEAD":  # a range is defined for GET alone
        return Response(headers=sent | {"Content-Length": str(download.size_bytes)})
    try:
        part = requested_range(conditions, version, download.size_bytes)
    except UnsatisfiableRangeError:
        detail = f"There are {download.size_bytes} bytes; the range {conditions.range!r} holds none of them."
        unsatisfied = {"Content-Range": f"bytes */{download.size_bytes}"}
        return problem(request, 416, "range_not_satisfiable", "Range not satisfiable", detail, headers=unsatisfied)
    start, end = (0, download.size_bytes) if part is None else (part.start, part.end)
    sent["Content-Length"] = str(end - start)
    if part is not None:
        sent["Content-Range"] = f"bytes {start}-{end - 1}/{download.size_bytes}"
    status = HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT
    return StreamingResponse(download.open(start, end), status, sent)


def _headers(download: Download, version: Version) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(download.sha256)).decode()
    disposition = "inline" if download.inline else "attachment"
    return {
        "ETag": version.etag,
        "Last-Modified": version.last_modified,
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache, no-transform",
        "Content-Type": download.media_type,
        "Content-Disposition": f'{disposition}; filename="{download.filename}"',
        **download.headers,
    }


def _check(storage: Storage, file: StoredFile, name: str) -> None:
    try:
        intact = storage.size(file.key) == file.size_bytes
    except NotFoundError:
        intact = False
    if not intact:
        raise StorageError(f"{name} is damaged in storage.")
