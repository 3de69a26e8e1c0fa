"""Columns of rows that are work: claimed by one worker at a time under a lease, fenced by `epoch`."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Id
from service.shared.db.models.jobs import Name, stored_enum
from service.shared.states import WorkState


class Work:
    """Mixed into a row whose making is one piece of work."""

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    state: Mapped[WorkState] = mapped_column(stored_enum(WorkState))
    epoch: Mapped[int] = mapped_column(default=0)
    lost_attempts: Mapped[int] = mapped_column(default=0)
    hb_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    worker_id: Mapped[str | None] = mapped_column(Name)
    next_publish_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    error: Mapped[dict[str, Any] | None]
    """`{code, message, hint, retryable}` of work that failed."""
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
