"""What the installation counts for good: the names of its tallies, and the buckets of those that are histograms."""

from __future__ import annotations

from bisect import bisect_left
from enum import StrEnum

OVERFLOW = "+Inf"


class TallyName(StrEnum):
    """Kept counts; the label of each is described beside it."""

    JOBS = "jobs"  # state that a job came into
    FAILURES = "failures"  # code of the error that a job failed with
    LOST = "lost"  # code of what ended an attempt without a result
    GPU_SECONDS = "gpu_seconds"  # none
    QUEUE_WAIT = "queue_wait"  # none
    DURATION = "duration"  # state that a job ended in
    DELIVERIES = "deliveries"  # how a try to deliver a webhook went: delivered | failed


MINUTE, HOUR, DAY = 60, 3600, 86400
BUCKETS: dict[TallyName, tuple[int, ...]] = {
    TallyName.QUEUE_WAIT: (1, 5, 15, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 4 * HOUR, DAY),
    TallyName.DURATION: (MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR, 8 * HOUR, DAY, 3 * DAY),
}
"""Upper bounds in seconds, rising."""


def bucket_of(name: TallyName, seconds: float) -> str:
    """The smallest bucket that holds an observation."""
    bounds = BUCKETS[name]
    place = bisect_left(bounds, seconds)
    return str(bounds[place]) if place < len(bounds) else OVERFLOW
