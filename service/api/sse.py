"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) of followed feeds."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

import structlog
from fastapi import Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.types import Message, Receive, Scope, Send

from service.api.deps import Services
from service.api.response_headers import headers
from service.shared.db.models import Job
from service.shared.states import TERMINAL
from service.usecases.following import Ended, Feed

log = structlog.get_logger(__name__)

RETRY_MS = 3000
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second: nginx passes each event on at once
FRAME = {
    "type": "object",
    "description": "One event of the stream; comments and `retry` come between them.",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["event", "data"],
}
RESPONSES: dict[int | str, dict[str, object]] = {
    200: {
        "description": "The stream",
        "content": {"text/event-stream": {"schema": FRAME}},
        "headers": headers(*HEADERS),
    },
    204: {
        "description": "The job has ended and nothing follows: an `EventSource` stops here",
        "headers": headers(*HEADERS),
    },
}

After = Annotated[
    int, Query(ge=0, lt=2**63, description="Begin behind this event id; 0 is the beginning.", examples=[12])
]
LastEventId = Annotated[
    int | None,
    Header(
        alias="Last-Event-ID", ge=0, lt=2**63, description="As `after`, and before it: `EventSource` sends it itself."
    ),
]


# JSON need not escape them, but clients that split lines as Python does would break there.
LINE_ENDS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})


class Done(BaseModel):
    status: str


class EventStream(StreamingResponse):
    """A stream that leaves nothing behind when its client goes, and drops one that does not read."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes], stall_timeout_s: float) -> None:
        super().__init__(frames, headers=HEADERS)
        self._frames = frames
        self._stall_timeout_s = stall_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._stall_timeout_s):
                await send(message)

        try:
            async with aclosing(self._frames):
                await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            log.info("stalled_stream_dropped", path=scope["path"])


def frame(event: str, data: BaseModel, event_id: int | None = None) -> bytes:
    """One event with a JSON object."""
    text = data.model_dump_json().translate(LINE_ENDS)
    return format_sse_event(id=None if event_id is None else str(event_id), event=event, data_str=text)


def stream(request: Request, found: Services, feed: Feed, job: Job, after: int, last_event_id: int | None) -> Response:
    """The answer that follows a feed of the job; 204 if it has ended and the client has everything.

    A position behind the end counts as the end.
    """
    end = feed.end(job)
    position = min(after if last_event_id is None else last_event_id, end)
    ended = Ended(job.state) if job.state in TERMINAL else None
    if ended is not None and position == end:
        return Response(status_code=204, headers=HEADERS)
    if request.method == "HEAD":
        return Response(media_type=EventStream.media_type, headers=HEADERS)
    found.broadcaster.check_room()
    followed = found.broadcaster.follow(feed, job.id, position, ended=ended)
    return EventStream(_frames(followed), found.settings.stream_stall_timeout_s)


async def _frames(followed: AsyncGenerator[bytes | Ended | None]) -> AsyncGenerator[bytes]:
    yield format_sse_event(retry=RETRY_MS)
    async with aclosing(followed):
        async for item in followed:
            match item:
                case None:
                    yield format_sse_event(comment="heartbeat")
                case Ended(status):
                    # Without an id: the client keeps the one of the last event, and gets 204 should it come back.
                    yield frame("done", Done(status=status))
                case frames:
                    yield frames
