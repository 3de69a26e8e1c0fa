"""Requests that wait for predictions: no thread each, and one question to the database for all of them."""

import re
from asyncio import Event, Task, create_task, sleep, timeout
from contextlib import suppress

import structlog
from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from service.shared.unit_of_work import Database

log = structlog.get_logger(__name__)

INTERVAL_S = 0.03
WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=[,;]|$)', re.IGNORECASE)


def requested_wait(prefer: str | None, most_s: float) -> float | None:
    """Seconds that a Prefer header asks to wait (RFC 7240), at most so many; None: it does not ask.

    Preferences that cannot be understood are ignored, as the standard has it.
    """
    match = WAIT.search(prefer) if prefer is not None else None
    return None if match is None else min(float(match[1]), most_s)


class PredictionWatch:
    """Wakes those that wait. It looks into the database only while somebody does."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[str, list[Event]] = {}
        self._looking: Task[None] | None = None
        self._closed = False

    def close(self) -> None:
        """Let all go that wait, and whoever comes later at once."""
        self._closed = True
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def ended(self, prediction_id: str, within_s: float) -> None:
        """Return when the prediction has ended (or was forgotten), or the time has passed."""
        if self._closed:
            return
        event = Event()
        self._waiting.setdefault(prediction_id, []).append(event)
        if self._looking is None:
            self._looking = create_task(self._look())
        try:
            with suppress(TimeoutError):
                async with timeout(within_s):
                    await event.wait()
        finally:
            left = [other for other in self._waiting.get(prediction_id, []) if other is not event]
            if left:
                self._waiting[prediction_id] = left
            else:
                self._waiting.pop(prediction_id, None)

    async def _look(self) -> None:
        try:
            while self._waiting:
                await self._wake()
                await sleep(INTERVAL_S)
        finally:
            self._looking = None

    async def _wake(self) -> None:
        asked = list(self._waiting)
        try:
            unfinished = await to_thread.run_sync(self._unfinished, asked)
        except SQLAlchemyError as error:  # those that wait are told later, or where to ask
            log.warning("watch_failed", error=str(error))
            return
        for prediction_id in set(asked) - unfinished:
            for event in self._waiting.get(prediction_id, []):
                event.set()

    def _unfinished(self, prediction_ids: list[str]) -> set[str]:
        with self._database.read() as unit:
            return unit.predictions.unfinished(prediction_ids)
