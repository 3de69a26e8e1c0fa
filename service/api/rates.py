"""How often something happened within a minute: counted here, and shared with other API processes in the background.

Counting asks nobody and waits for nothing. What was counted is added up in the broker twice a second, so that of N
processes none allows more than the limit, and all together no more than what comes in half a second beyond it. Without
a broker each process counts for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

import structlog
from anyio import to_thread

from service.shared.errors import TooManyRequestsError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from service.shared.clock import Clock

log = structlog.get_logger(__name__)

WINDOW_S = 60
SHARE_EVERY_S = 0.5
SILENCE_AFTER_FAILURE_S = 5.0
TIMEOUT_S = 1.0
BATCH = 1000
KEPT_FOR_S = 3 * WINDOW_S
ROUNDING = 1e-3  # of a request


@dataclass(frozen=True)
class Standing:
    """How much of a limit is left."""

    is_within: bool
    limit: int
    remaining: int
    resets_s: int
    """Seconds to the next window."""
    retry_after_s: int
    """Seconds until one more is within the limit, if nothing else comes."""

    def require(self, message: str) -> None:
        """Raise TooManyRequestsError unless it is within the limit."""
        if not self.is_within:
            raise TooManyRequestsError(message, retry_after_s=self.retry_after_s)


@dataclass
class _Counts:
    window: int
    present: int = 0
    previous: int = 0

    def roll(self, window: int) -> None:
        if window != self.window:
            self.previous = self.present if window == self.window + 1 else 0
            self.window, self.present = window, 0


class Rates:
    """Sliding minutes: of the previous window that part counts which the last 60 seconds still cover.

    Belongs to one event loop.
    """

    def __init__(self, broker_url: str, clock: Clock) -> None:
        self._broker_url = broker_url
        self._clock = clock
        self._counts: dict[str, _Counts] = {}
        self._unshared: Counter[tuple[str, int]] = Counter()
        self._window = 0
        self._sharing: asyncio.Task[None] | None = None
        self._broker: Redis | None = None
        self._is_alone = False

    def look(self, name: str, limit: int) -> Standing:
        """Whether one more is within the limit."""
        return self._standing(self._of(name), limit)

    def hit(self, name: str, limit: int) -> Standing:
        """Count one more, unless it is beyond the limit."""
        counts = self._of(name)
        before = self._standing(counts, limit)
        if not before.is_within:
            return before
        counts.present += 1
        self._unshared[name, counts.window] += 1
        if self._sharing is None:
            # In a context of its own: the one of this request would give its id to what is logged for all.
            self._sharing = asyncio.get_running_loop().create_task(self._share(), context=Context())
        after = self._standing(counts, limit)
        return Standing(True, limit, after.remaining, after.resets_s, 0)

    async def close(self) -> None:
        if self._sharing is not None:
            self._sharing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sharing
        if self._broker is not None:
            await self._broker.aclose()

    def _of(self, name: str) -> _Counts:
        window = int(self._clock.now().timestamp()) // WINDOW_S
        if window != self._window:
            self._window = window
            self._counts = {name: counts for name, counts in self._counts.items() if counts.window >= window - 1}
        counts = self._counts.setdefault(name, _Counts(window))
        counts.roll(window)
        return counts

    def _standing(self, counts: _Counts, limit: int) -> Standing:
        passed_s = self._clock.now().timestamp() % WINDOW_S
        used = counts.present + counts.previous * (1 - passed_s / WINDOW_S)
        remaining = max(0, math.floor(limit - used + ROUNDING))
        resets_s = math.ceil(WINDOW_S - passed_s)
        if remaining:
            return Standing(True, limit, remaining, resets_s, 0)
        if counts.present < limit:  # so much of the previous window has to pass that one more fits
            wait_s = WINDOW_S * (1 - (limit - counts.present - 1) / counts.previous) - passed_s
        else:
            wait_s = WINDOW_S - passed_s + WINDOW_S * (1 - (limit - 1) / counts.present)
        return Standing(False, limit, 0, resets_s, max(1, math.ceil(round(wait_s, 6))))

    async def _share(self) -> None:
        try:
            while self._unshared:
                await asyncio.sleep(SILENCE_AFTER_FAILURE_S if self._is_alone else SHARE_EVERY_S)
                for name, window in [each for each in self._unshared if each[1] < self._window - 1]:
                    del self._unshared[name, window]
                batch = dict(self._unshared.most_common(BATCH))
                try:
                    await self._exchange(batch)
                except Exception as error:  # noqa: BLE001 - whatever the broker's client raises, counting goes on here
                    if not self._is_alone:
                        log.warning("rates_not_shared", error=str(error))
                    self._is_alone = True
                else:
                    self._is_alone = False
        finally:
            self._sharing = None

    async def _exchange(self, batch: dict[tuple[str, int], int]) -> None:
        """Add what was counted here to what all have counted, and take over the sums."""
        if self._broker is None:
            self._broker = await to_thread.run_sync(_client, self._broker_url)
        from redis.exceptions import TimeoutError as RedisTimeoutError

        async with self._broker.pipeline(transaction=False) as pipeline:
            for (name, window), count in batch.items():
                pipeline.incrby(_key(name, window), count)
                pipeline.expire(_key(name, window), KEPT_FOR_S)
                pipeline.get(_key(name, window - 1))
            try:
                answers = await pipeline.execute()
            except RedisTimeoutError:
                self._leave_out(batch)  # the broker may have counted it: too few hurt nobody, twice refuses requests
                raise
        self._leave_out(batch)
        for number, (name, window) in enumerate(batch):
            counts = self._counts.get(name)
            if counts is None:
                continue
            present = int(answers[3 * number]) + self._unshared[name, window]
            if counts.window == window:
                counts.present, counts.previous = present, max(counts.previous, int(answers[3 * number + 2] or 0))
            elif counts.window == window + 1:
                counts.previous = present

    def _leave_out(self, batch: dict[tuple[str, int], int]) -> None:
        self._unshared.subtract(batch)
        self._unshared += Counter()  # leaves out what is zero


def _client(broker_url: str) -> Redis:
    # Importing it takes time that no start, and no other request, should have to wait.
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Redis.from_url(
        client_url(broker_url),
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),  # what was sent once may have been counted
    )


def client_url(broker_url: str) -> str:
    """A broker's URL, as Celery reads it, for the client that talks to it directly."""
    address, _, query = broker_url.partition("?")
    names = {"virtual_host": "db"}
    options = {names.get(name, name): value for name, value in parse_qsl(query)}
    if "ssl_cert_reqs" in options:
        options["ssl_cert_reqs"] = options["ssl_cert_reqs"].removeprefix("CERT_").lower()
    return address.replace("redis+socket://", "unix://", 1) + (f"?{urlencode(options)}" if options else "")


def _key(name: str, window: int) -> str:
    return f"sam3:rate:{name}:{window}"
