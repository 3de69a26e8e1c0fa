"""Estimates: asked for once per question, worked out by whichever worker is free."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select, update

from service.shared.db.models import Estimate
from service.shared.db.repositories.inserts import insert_minding

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.shared.clock import Clock

WORK_S = 300.0
"""Time that a worker gets before another may try."""
MAX_ATTEMPTS = 3
LOST = {
    "code": "worker_lost",
    "message": "The workers that estimated this were lost.",
    "hint": "Look at the log of the cpu workers; their machine may lack memory.",
    "retryable": True,
}


class EstimateRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def ask(self, estimate_id: str, *, base_model: str, config: dict[str, Any]) -> Estimate:
        """The estimate of a question; one that is new, or that failed for a passing reason, is due at once."""
        now = self._clock.now()
        values = {"base_model": base_model, "config": config, "attempts": 0, "due_at": now, "created_at": now}
        statement = insert_minding(self._session, Estimate).values(id=estimate_id, **values)
        self._session.execute(statement.on_conflict_do_nothing(index_elements=["id"]))
        estimate = self.get(estimate_id)
        if estimate.error is not None and estimate.error["retryable"]:
            estimate.error, estimate.attempts, estimate.due_at = None, 0, now
            self._session.flush()
        return estimate

    def get(self, estimate_id: str) -> Estimate:
        """An estimate that was asked for."""
        return self._session.get_one(Estimate, estimate_id, populate_existing=True)

    def claim(self) -> Estimate | None:
        """The question that has waited longest, for this worker alone for a while; None if nothing is due."""
        now = self._clock.now()
        while True:
            waiting = select(Estimate).where(Estimate.due_at <= now).order_by(Estimate.due_at).limit(1)
            estimate = self._session.scalars(waiting.with_for_update(skip_locked=True)).one_or_none()
            if estimate is None:
                return None
            if estimate.attempts < MAX_ATTEMPTS:
                estimate.attempts += 1
                estimate.due_at = now + timedelta(seconds=WORK_S)
                self._session.flush()
                return estimate
            self.finish(estimate.id, error=LOST)

    def finish(
        self, estimate_id: str, *, result: dict[str, Any] | None = None, error: dict[str, Any] | None = None
    ) -> None:
        """Store the answer, or why there is none."""
        answered = update(Estimate).where(Estimate.id == estimate_id, Estimate.result.is_(None))
        self._session.execute(answered.values(result=result, error=error, due_at=None))

    def put_back(self, estimate_id: str) -> None:
        """Give a question back unanswered; does not count as an attempt."""
        taken = update(Estimate).where(Estimate.id == estimate_id, Estimate.due_at.is_not(None))
        self._session.execute(taken.values(due_at=self._clock.now(), attempts=Estimate.attempts - 1))

    def forget(self, older_than_s: float) -> None:
        """Remove what was asked longer ago."""
        since = self._clock.now() - timedelta(seconds=older_than_s)
        self._session.execute(delete(Estimate).where(Estimate.created_at < since))
