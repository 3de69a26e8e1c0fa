"""Conditions on times that other clocks have written: one that was wrong is not believed for long."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import or_

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import InstrumentedAttribute

AHEAD_S = 300.0
"""Seconds that a clock may be ahead of another and still be believed."""


def wait_is_over(
    not_before: InstrumentedAttribute[datetime | None], now: datetime, *, longest_s: float
) -> ColumnElement[bool]:
    """Whether there is nothing to wait for any more; no wait is longer than `longest_s`."""
    latest = now + timedelta(seconds=longest_s + AHEAD_S)
    return or_(not_before.is_(None), not_before <= now, not_before > latest)


def is_within(at: InstrumentedAttribute[datetime], now: datetime, *, seconds: float) -> ColumnElement[bool]:
    """Whether a sign of life came in the last so many seconds."""
    return at.between(*window(now, seconds=seconds))


def window(now: datetime, *, seconds: float) -> tuple[datetime, datetime]:
    """Between which times it came then."""
    return now - timedelta(seconds=seconds), now + timedelta(seconds=AHEAD_S)
