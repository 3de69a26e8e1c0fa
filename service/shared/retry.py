"""When work that failed through no fault of its own may be tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol


class Retry(Protocol):
    @property
    def longest_s(self) -> float:
        """No wait is longer, in seconds."""
        ...

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after the given number of failures (1 or more)."""
        ...


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter in its upper half."""

    base_s: float
    max_s: float

    @property
    def longest_s(self) -> float:
        return self.max_s

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after the given number of failures (1 or more)."""
        ceiling = min(self.max_s, self.base_s * 2.0 ** min(failures - 1, 30))
        return ceiling * random.uniform(0.5, 1.0)
