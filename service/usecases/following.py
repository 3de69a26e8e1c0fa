"""Live streams of what a job leaves behind. One poller for each process reads for everybody who follows.

A follower is a position, no more: it waits without a thread or a connection, takes what the poller has read lately,
and reads from the database by itself only what lies further back. So the database alone decides what it gets, each
piece once and in order, whatever is killed in between; and one that takes its time costs no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError

from service.shared.errors import TooManyStreamsError
from service.shared.states import TERMINAL

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

    from service.shared.db.models import Job
    from service.shared.db.repositories.events import Head
    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database, UnitOfWork

log = structlog.get_logger(__name__)

PIECES_BYTES = 64 * 1024  # read at once, and kept of each followed feed
READERS = 4  # threads, and connections, that followers share to catch up


@dataclass(frozen=True)
class Piece:
    """Something to send, and the position behind it."""

    position: int
    content: bytes


@dataclass(frozen=True)
class Ended:
    """The job has ended, and all was sent."""

    status: str


@dataclass(frozen=True)
class Feed:
    """Something that only grows with a job."""

    name: str
    end: Callable[[Head | Job], int]
    """Position behind the last piece."""
    read: Callable[[UnitOfWork, str, int], Sequence[Piece]]
    """Pieces of a job behind a position; at least one if there are any, no more than about `PIECES_BYTES`."""


@dataclass(frozen=True)
class News:
    """What the poller found of a feed of one job."""

    end: int
    pieces: Sequence[Piece]
    is_behind: bool
    """There is more to read."""
    ended: Ended | None


@dataclass
class Topic:
    """A feed of one job that is followed, and its latest pieces."""

    feed: Feed
    job_id: str
    followers: int = 0
    end: int | None = None
    """Position up to which the poller has read; None before its first look."""
    ended: Ended | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _start: int = 0
    _pieces: deque[Piece] = field(default_factory=deque)
    _size: int = 0

    def after(self, position: int) -> Sequence[Piece] | None:
        """Pieces behind a position; None if they do not reach back that far."""
        if self.end is None:
            return None
        found: deque[Piece] = deque()
        for piece in reversed(self._pieces):
            if piece.position <= position:
                return found if piece.position == position or not found else None
            found.appendleft(piece)
        return found if self._start == position or (self._start < position and not found) else None

    def take(self, news: News) -> None:
        """Add what was found, and wake the followers if there is anything."""
        if self.end is None:
            self._start = news.end
        for piece in news.pieces:
            self._pieces.append(piece)
            self._size += len(piece.content)
        while self._size > PIECES_BYTES:
            oldest = self._pieces.popleft()
            self._size -= len(oldest.content)
            self._start = oldest.position
        self.end = news.end
        if news.pieces or news.ended != self.ended:
            self.ended = news.ended
            self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Broadcaster:
    """Gives followers what the database holds. Belongs to one event loop, except for `check_room`."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._poll_interval_s = settings.stream_poll_interval_s
        self._heartbeat_s = settings.stream_heartbeat_s
        self._max_followers = settings.max_streams
        self._topics: dict[tuple[str, str], Topic] = {}
        self._poller: asyncio.Task[None] | None = None
        self._readers = CapacityLimiter(READERS)
        self._closed = False
        self.followers = 0

    def check_room(self) -> None:
        """Call this before `follow`.

        Raises:
            TooManyStreamsError: if this process has as many followers as it takes.
        """
        if self.followers >= self._max_followers:
            raise TooManyStreamsError(
                f"This server already keeps {self.followers} streams open: try again later, or poll the list instead."
            )

    async def follow(
        self, feed: Feed, job_id: str, position: int, *, ended: Ended | None = None
    ) -> AsyncGenerator[bytes | Ended | None]:
        """What lies behind a position of the feed and all that follows, then, once the job has ended, `Ended`.

        None stands for a time in which nothing happened. `ended`: the job has already ended. Stops early when this
        process shuts down or the database is away: whoever followed comes back with its last position.
        """
        with self._joined(feed, job_id) as topic:
            while self._poller is not None and not self._closed:
                changed, over = topic.changed, ended or topic.ended  # before reading: what comes later wakes again
                pieces = topic.after(position)
                if pieces is None:
                    try:
                        pieces = await to_thread.run_sync(self._read, topic, position, limiter=self._readers)
                    except SQLAlchemyError as error:
                        log.warning("stream_broken_off", job_id=job_id, error=str(error))
                        return
                if pieces:
                    yield b"".join(piece.content for piece in pieces)
                    position = pieces[-1].position
                elif over is not None:
                    yield over
                    return
                elif not await _happens(changed, self._heartbeat_s):
                    yield None

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count a stream that follows something else among those of this process."""
        self.followers += 1
        try:
            yield
        finally:
            self.followers -= 1

    def close(self) -> None:
        """End every stream now, and each later one at once."""
        self._closed = True
        self._wake_all()

    def _wake_all(self) -> None:
        for topic in self._topics.values():
            topic.wake()

    @contextlib.contextmanager
    def _joined(self, feed: Feed, job_id: str) -> Iterator[Topic]:
        key = (feed.name, job_id)
        topic = self._topics.setdefault(key, Topic(feed, job_id))
        topic.followers += 1
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            with self.counted():
                yield topic
        finally:
            topic.followers -= 1
            if topic.followers == 0:
                del self._topics[key]

    async def _poll(self) -> None:
        """Look for news until nobody follows; should it fail, no stream waits for it."""
        try:
            while self._topics and not self._closed:
                topics = list(self._topics.values())
                try:
                    found = await to_thread.run_sync(self._look, topics, limiter=self._readers)
                except SQLAlchemyError as error:
                    log.warning("streams_kept_waiting", streams=self.followers, error=str(error))
                    found = []
                for topic, news in zip(topics, found, strict=False):
                    topic.take(news)
                is_behind = any(news.is_behind for news in found)
                await asyncio.sleep(0 if is_behind else self._poll_interval_s)
        finally:
            self._poller = None
            self._wake_all()

    def _look(self, topics: Sequence[Topic]) -> list[News]:
        with self._database.read() as unit:
            heads = unit.events.heads({topic.job_id for topic in topics})
            return [_news(unit, topic, heads.get(topic.job_id)) for topic in topics]

    def _read(self, topic: Topic, position: int) -> Sequence[Piece]:
        with self._database.read() as unit:
            return topic.feed.read(unit, topic.job_id, position)


def _news(unit: UnitOfWork, topic: Topic, head: Head | None) -> News:
    if head is None:
        return News(topic.end or 0, [], is_behind=False, ended=Ended("deleted"))
    end = topic.feed.end(head)
    if topic.end is None or topic.end >= end:
        pieces: Sequence[Piece] = []
        read_to = end if topic.end is None else topic.end
    else:
        pieces = topic.feed.read(unit, topic.job_id, topic.end)
        read_to = pieces[-1].position if pieces else end
    is_behind = read_to < end
    is_over = head.state in TERMINAL and not is_behind
    return News(read_to, pieces, is_behind, Ended(head.state) if is_over else None)


async def _happens(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether the event was set within the time."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
