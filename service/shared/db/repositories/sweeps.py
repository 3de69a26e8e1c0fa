"""Sweeps, and what their jobs tell of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select

from service.shared.db.models import Job, Sweep
from service.shared.db.repositories.paging import page
from service.shared.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.states import JobState


@dataclass(frozen=True)
class Trial:
    """A job of a sweep: the values that it tries, and its best so far."""

    job_id: str
    sweep_id: str
    values: dict[str, Any]
    state: JobState
    best: dict[str, Any] | None


class SweepRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def add(self, sweep: Sweep) -> Sweep:
        sweep.created_at = self._clock.now()
        self._session.add(sweep)
        self._session.flush()
        return sweep

    def get(self, sweep_id: str) -> Sweep:
        """The sweep.

        Raises:
            NotFoundError: if there is none.
        """
        sweep = self._session.get(Sweep, sweep_id)
        if sweep is None:
            raise NotFoundError(f"There is no sweep {sweep_id!r}.")
        return sweep

    def list(
        self, *, limit: int, descending: bool, after: str | None, before: str | None
    ) -> tuple[Sequence[Sweep], bool]:
        """One page in order of creation, and whether more follow.

        Raises:
            NotFoundError: if `after` or `before` names no sweep.
        """
        return page(
            self._session,
            select(Sweep),
            Sweep,
            limit=limit,
            descending=descending,
            after=after,
            before=before,
            get=self.get,
        )

    def trials(self, sweep_ids: Sequence[str]) -> Sequence[Trial]:
        """Jobs of these sweeps that were not deleted, in the order of their trials."""
        columns = (Job.id, Job.sweep_id, Job.trial, Job.state, Job.best)
        there = (Job.sweep_id.in_(sweep_ids), Job.deleted_at.is_(None))
        rows = self._session.execute(select(*columns).where(*there).order_by(Job.created_at, Job.id))
        return [
            Trial(job_id, str(sweep_id), values or {}, state, best) for job_id, sweep_id, values, state, best in rows
        ]

    def remove(self, sweep_id: str) -> None:
        self._session.execute(delete(Sweep).where(Sweep.id == sweep_id))
