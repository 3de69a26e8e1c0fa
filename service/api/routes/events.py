"""What has happened to a job: as a list, and live."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.api import sse
from service.api.deps import AppServices, JobId, ReadUnit
from service.api.errors import problem_responses
from service.api.schemas.events import EventPage, EventQuery, event_read
from service.shared.unit_of_work import UnitOfWork
from service.usecases.following import PIECES_BYTES, Feed, Piece

router = APIRouter(prefix="/jobs/{job_id}/events", tags=["jobs"])

EVENTS_READ = 100


@router.head("", include_in_schema=False)
@router.get("", responses=problem_responses(404, 422, 503))
def list_events(unit: ReadUnit, job_id: JobId, query: Annotated[EventQuery, Query()]) -> EventPage:
    """What has happened to the job, oldest first."""
    unit.jobs.get(job_id)
    found = unit.events.list(
        job_id,
        after=query.after,
        before=query.before,
        limit=query.limit + 1,
        descending=query.order == "desc",
        types=query.type,
        levels=query.level,
    )
    data = [event_read(event) for event in found[: query.limit]]
    first_seq, last_seq = (data[0].seq, data[-1].seq) if data else (None, query.after)
    return EventPage(data=data, first_seq=first_seq, last_seq=last_seq, has_more=len(found) > query.limit)


@router.head("/stream", include_in_schema=False)
@router.get(
    "/stream",
    response_class=StreamingResponse,
    responses={**sse.RESPONSES, **problem_responses(404, 422, 503)},
)
def stream_events(
    request: Request,
    unit: ReadUnit,
    found: AppServices,
    job_id: JobId,
    after: sse.After = 0,
    last_event_id: sse.LastEventId = None,
) -> Response:
    """Events as they happen, as server-sent events: `id` is the `seq`, `event` the type, `data` the event's JSON.

    A client that comes back with `Last-Event-ID` misses none and gets none twice. After the last event of a job that
    has ended comes `event: done`, and the stream closes; from then on the answer is 204. Mind that an event of type
    `error` reaches the handler for broken connections of an `EventSource`, too: only the event has `data`.
    """
    return sse.stream(request, found, EVENTS, unit.jobs.get(job_id), after, last_event_id)


def _read(unit: UnitOfWork, job_id: str, after: int) -> Sequence[Piece]:
    pieces: list[Piece] = []
    size = 0
    for event in unit.events.list(job_id, after=after, limit=EVENTS_READ):
        pieces.append(Piece(event.seq, sse.frame(event.type, event_read(event), event.seq)))
        size += len(pieces[-1].content)
        if size >= PIECES_BYTES:
            break
    return pieces


EVENTS = Feed("events", end=lambda head: head.last_event_seq, read=_read)
