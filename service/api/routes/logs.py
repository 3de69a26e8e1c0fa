"""The trainer's log of a job: whole, resumable, page by page, and live."""

import re
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.api import sse
from service.api.conditional import Conditions, UnsatisfiableRangeError, Version, names, requested_range
from service.api.deps import AppServices, JobId, ReadUnit
from service.api.errors import problem, problem_responses
from service.api.negotiation import preferred
from service.api.response_headers import headers as described
from service.api.schemas.logs import LogPiece, LogRead
from service.shared.db.models import Job
from service.shared.errors import InvalidRequestError, fault
from service.shared.states import TERMINAL
from service.shared.unit_of_work import UnitOfWork
from service.usecases.following import PIECES_BYTES, Feed, Piece
from service.usecases.logs import PIECE_BYTES, read_pieces

router = APIRouter(prefix="/jobs/{job_id}/logs", tags=["jobs"])

TEXT, JSON = "text/plain", "application/json"


@router.head("", include_in_schema=False)
@router.get(
    "",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The log",
            "model": LogRead,
            "content": {TEXT: {"schema": {"type": "string"}}},
            "headers": described("ETag", "Accept-Ranges", "Cache-Control", "Vary"),
        },
        206: {
            "description": "The requested range",
            "content": {TEXT: {"schema": {"type": "string"}}},
            "headers": described("ETag", "Accept-Ranges", "Cache-Control", "Vary", "Content-Range"),
        },
        304: {
            "description": "Not modified",
            "headers": described("ETag", "Accept-Ranges", "Cache-Control", "Vary"),
        },
        **problem_responses(404, 416, 422, 503),
    },
)
def get_logs(
    request: Request,
    unit: ReadUnit,
    found: AppServices,
    job_id: JobId,
    tail: Annotated[int | None, Query(ge=1, le=100_000, description="Only so many last lines.")] = None,
    after: Annotated[int | None, Query(ge=0, lt=2**63, description="Only what follows this byte offset.")] = None,
    accept: Annotated[str | None, Header(description="`application/json`: in pages.")] = None,
    range_: Annotated[
        str | None, Header(alias="Range", examples=["bytes=1000-"], description="One range of bytes to send.")
    ] = None,
    if_range: Annotated[
        str | None, Header(description="Send the range only if the log began like this version, else all.")
    ] = None,
    if_none_match: Annotated[str | None, Header(description="Send none of these versions, but 304.")] = None,
) -> Response:
    """The trainer's log of all attempts, in every state of the job.

    As text the whole log has an entity tag and can be resumed with `Range`; since a log only grows, `If-Range` with
    the tag of an earlier answer holds. With `Accept: application/json` it comes in pages of about a mebibyte: ask
    again with `next_offset` as `after` until `is_complete`.
    """
    job = unit.jobs.get(job_id)
    start = _start(unit, job_id, tail, after)
    size = unit.logs.size(job_id)
    if preferred(accept, (TEXT, JSON)) == JSON:
        return Response(
            _page(unit, job, min(start or 0, size), size).model_dump_json(), media_type=JSON, headers=HEADERS
        )
    if start is not None:
        return _text(request, found, job_id, min(start, size), size, HEADERS)
    etag = f'"{job_id}-{size}"'
    headers = HEADERS | {"ETag": etag, "Accept-Ranges": "bytes"}
    if names(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return _text(request, found, job_id, 0, size, headers)
    try:
        wanted = Conditions(range=range_, if_range=etag if _is_of_prefix(if_range, job_id, size) else if_range)
        part = requested_range(wanted, Version(etag, job.created_at), size)
    except UnsatisfiableRangeError:
        detail = f"The log has {size} bytes; the range {range_!r} holds none of them."
        unsatisfied = {"Content-Range": f"bytes */{size}"}
        return problem(request, 416, "range_not_satisfiable", "Range not satisfiable", detail, headers=unsatisfied)
    if part is None:
        return _text(request, found, job_id, 0, size, headers)
    headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{size}"
    return _text(request, found, job_id, part.start, part.end, headers, status=206)


@router.head("/stream", include_in_schema=False)
@router.get(
    "/stream",
    response_class=StreamingResponse,
    responses={**sse.RESPONSES, **problem_responses(404, 422, 503)},
)
def stream_logs(
    request: Request,
    unit: ReadUnit,
    found: AppServices,
    job_id: JobId,
    after: sse.After = 0,
    last_event_id: sse.LastEventId = None,
) -> Response:
    """The log as it is written, as server-sent events: `data` is JSON, `{offset, text}`, `id` the offset behind it.

    A client that comes back with `Last-Event-ID` misses nothing and gets nothing twice. After the end of the log of a
    job that has ended comes `event: done`, and the stream closes; from then on the answer is 204.
    """
    return sse.stream(request, found, LOGS, unit.jobs.get(job_id), after, last_event_id)


HEADERS = {"Cache-Control": "private, no-cache", "Vary": "Accept"}


def _start(unit: UnitOfWork, job_id: str, tail: int | None, after: int | None) -> int | None:
    """Offset at which the asked part begins; None for the whole log."""
    if tail is not None and after is not None:
        message = "tail and after cannot be combined: give one of them"
        raise InvalidRequestError(message, errors=[fault("/query/tail", "conflict", message)])
    return after if tail is None else unit.logs.tail_offset(job_id, tail)


def _page(unit: UnitOfWork, job: Job, start: int, size: int) -> LogRead:
    data = b"".join(data for _, data in unit.logs.chunks(job.id, start, max_bytes=PIECE_BYTES))
    end = start + len(data)
    return LogRead(
        job_id=job.id,
        offset=start,
        data=data.decode(errors="replace"),
        next_offset=end,
        is_complete=job.state in TERMINAL and end >= size,
    )


def _text(
    request: Request, found: AppServices, job_id: str, start: int, end: int, headers: dict[str, str], status: int = 200
) -> Response:
    headers = headers | {"Content-Length": str(end - start)}
    if request.method == "HEAD":
        return Response(media_type=TEXT, headers=headers)
    return StreamingResponse(read_pieces(found.database, job_id, start, end), status, headers, TEXT)


def _is_of_prefix(tag: str | None, job_id: str, size: int) -> bool:
    """Whether an entity tag was given for this log when it was no longer than now: then it began as it does now."""
    match = re.fullmatch(rf'"{re.escape(job_id)}-(\d{{1,19}})"', tag.strip()) if tag is not None else None
    return match is not None and int(match[1]) <= size


def _read(unit: UnitOfWork, job_id: str, after: int) -> Sequence[Piece]:
    pieces = []
    for offset, data in unit.logs.chunks(job_id, after, max_bytes=PIECES_BYTES):
        end = offset + len(data)
        piece = LogPiece(offset=offset, text=data.decode(errors="replace"))
        pieces.append(Piece(end, sse.frame("log", piece, end)))
    return pieces


LOGS = Feed("logs", end=lambda head: head.log_bytes, read=_read)
