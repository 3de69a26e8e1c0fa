"""Downloads of checkpoint files: resumable, and verifiable against their hash."""

import base64
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import StreamingResponse

from service.api.conditional import UnsatisfiableRangeError, names, requested_range
from service.api.deps import AppServices, ReadUnit
from service.api.errors import problem, problem_responses
from service.shared.db.models import CheckpointFile
from service.shared.errors import StorageError

router = APIRouter(prefix="/checkpoints", tags=["checkpoints"])

CheckpointId = Annotated[str, Path(max_length=64)]
FileName = Annotated[str, Path(max_length=200, examples=["adapter_model.safetensors"])]


@router.head("/{checkpoint_id}/files/{name}", include_in_schema=False)
@router.get(
    "/{checkpoint_id}/files/{name}",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        206: {"description": "The requested range"},
        304: {"description": "Not modified"},
        **problem_responses(404, 412, 416, 503),
    },
)
def download_file(
    request: Request,
    unit: ReadUnit,
    found: AppServices,
    checkpoint_id: CheckpointId,
    name: FileName,
    range_: Annotated[str | None, Header(alias="Range", examples=["bytes=1000-"])] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_match: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Download one file, whole or from where an earlier download broke off.

    The entity tag is the SHA-256 of the whole file; `Repr-Digest` carries it too.
    """
    file = unit.checkpoints.get_file(checkpoint_id, name)
    etag = f'"{file.sha256}"'
    headers = _headers(file, etag)
    if if_match is not None and not names(if_match, etag):
        return problem(request, 412, "precondition_failed", "Precondition failed", f"The file's tag is {etag}.")
    if names(if_none_match, etag):
        return Response(status_code=304, headers={name: headers[name] for name in ("ETag", "Cache-Control")})
    if request.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(file.size_bytes)})
    try:
        part = requested_range(range_, if_range, etag, file.size_bytes)
    except UnsatisfiableRangeError:
        detail = f"The file has {file.size_bytes} bytes; the range {range_!r} holds none of them."
        unsatisfied = {"Content-Range": f"bytes */{file.size_bytes}"}
        return problem(request, 416, "range_not_satisfiable", "Range not satisfiable", detail, headers=unsatisfied)
    if found.storage.size(file.storage_key) != file.size_bytes:
        raise StorageError(f"{name} of checkpoint {checkpoint_id} is damaged in storage.")
    start, end = (0, file.size_bytes) if part is None else (part.start, part.end)
    headers["Content-Length"] = str(end - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size_bytes}"
    content = found.storage.get_range(file.storage_key, start, end)
    return StreamingResponse(content, 200 if part is None else 206, headers)


def _headers(file: CheckpointFile, etag: str) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    return {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-transform",
        "Content-Type": "application/json" if file.name.endswith(".json") else "application/octet-stream",
        "Content-Disposition": f'attachment; filename="{file.name}"',
        "X-Content-Type-Options": "nosniff",
    }
