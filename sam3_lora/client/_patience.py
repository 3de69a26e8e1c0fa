"""How often to try again, and how long: what both clients do alike."""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

T = TypeVar("T")
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 15.0
PASSING = frozenset({408, 425, 429, 502, 503, 504})
"""Statuses after which the same request may do better."""


class Patience:
    """Delays between attempts, until none has got anywhere for `for_s` seconds."""

    def __init__(self, for_s: float) -> None:
        self._for_s = for_s
        self._since: float | None = None
        self._attempts = 0

    def reset(self) -> None:
        """There was progress: begin anew with the next fault."""
        self._since, self._attempts = None, 0

    def next_delay(self, wanted_s: float | None = None) -> float | None:
        """Seconds to wait before the next attempt; None: it is time to give up.

        Args:
            wanted_s: what the server asks for.
        """
        now = time.monotonic()
        self._since = self._since if self._since is not None else now
        longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**self._attempts)
        self._attempts += 1
        delay = wanted_s if wanted_s is not None else random.uniform(longest / 2, longest)
        return delay if now - self._since + delay <= self._for_s else None


def is_passing(response: httpx.Response) -> bool:
    """Whether to ask again: the server says itself where that is in vain (`x-should-retry`)."""
    return response.status_code in PASSING and response.headers.get("x-should-retry") != "false"


def wanted_delay(response: httpx.Response) -> float | None:
    """Seconds that `Retry-After` asks for, given as such or as a date."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


async def in_thread_async(function: Callable[..., T], *arguments: object) -> T:
    """Call what takes long without holding up the event loop."""
    return await anyio.to_thread.run_sync(lambda: function(*arguments))


def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """The same where there is no event loop."""
    return function(*arguments)
