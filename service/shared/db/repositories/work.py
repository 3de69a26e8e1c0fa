"""Rows that are work, whatever is made of them: add, claim, renew, finish, take away, announce."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import ColumnElement, func, select, update

from service.shared.db.models import Comparison, Export, Prediction, WebhookDelivery
from service.shared.db.repositories.attempts import Lease
from service.shared.db.repositories.times import wait_is_over
from service.shared.errors import LeaseLostError, StateConflictError
from service.shared.states import WorkState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.retry import Retry

Row = TypeVar("Row", Export, Prediction, Comparison, WebhookDelivery)

WORKER_LOST = {
    "code": "worker_lost",
    "message": "The worker was lost before it had a result.",
    "hint": "Ask again; if this repeats, the worker's machine may lack memory.",
    "retryable": True,
}


class WorkRepository(Generic[Row]):
    """A claim raises `epoch`, and every later write of that worker carries it."""

    def __init__(self, session: Session, clock: Clock, retry: Retry, model: type[Row], max_attempts: int) -> None:
        self._session = session
        self._clock = clock
        self._retry = retry
        self._model: type[Row] = model
        self._max_attempts = max_attempts

    def add(self, row: Row) -> Row:
        """Insert new work, due at once."""
        row.state = WorkState.QUEUED
        row.created_at = row.next_publish_at = self._clock.now()
        self._session.add(row)
        self._session.flush()
        return row

    def count_waiting(self) -> int:
        """Pieces of work that no worker has claimed."""
        return self._session.scalar(select(func.count()).where(self._model.state == WorkState.QUEUED)) or 0

    def claim(self, worker_id: str, **noted: Any) -> Row | None:
        """Take the oldest work that is due, under a new `epoch`; None if there is none. `noted`: by column."""
        model, now = self._model, self._clock.now()
        is_over = wait_is_over(model.not_before, now, longest_s=self._retry.longest_s)
        due = (model.state == WorkState.QUEUED, is_over)
        chosen = self._session.scalar(
            select(model.id).where(*due).order_by(model.created_at, model.id).limit(1).with_for_update(skip_locked=True)
        )
        if chosen is None:
            return None
        taken = {"worker_id": worker_id, "epoch": model.epoch + 1, "hb_seq": 0, "next_publish_at": None}
        return self._update(model.id == chosen, *due, state=WorkState.RUNNING, **taken, **noted)

    def heartbeat(self, work_id: str, epoch: int, **noted: Any) -> None:
        """Renew the lease. `noted`: by column.

        Raises:
            LeaseLostError: if `epoch` no longer holds the work (also when it was deleted).
        """
        self._fenced(work_id, epoch, hb_seq=self._model.hb_seq + 1, **noted)

    def succeed(self, work_id: str, epoch: int, **result: Any) -> Row:
        """End the work with its result, by column.

        Raises:
            LeaseLostError: if `epoch` no longer holds the work.
        """
        return self._fenced(work_id, epoch, **result, **self._ended(WorkState.SUCCEEDED))

    def fail(self, work_id: str, epoch: int, error: dict[str, Any]) -> Row:
        """End the attempt: due again after a wait if the error is `retryable` and attempts are left, else failed.

        Raises:
            LeaseLostError: if `epoch` no longer holds the work.
        """
        row = self._fenced(work_id, epoch, error=None)
        return self._fenced(work_id, epoch, **self._after_failure(row, error))

    def give_back(self, work_id: str, epoch: int) -> Row:
        """Give the work back undone, due at once; does not count as an attempt.

        Raises:
            LeaseLostError: if `epoch` no longer holds the work.
        """
        now = self._clock.now()
        return self._fenced(work_id, epoch, state=WorkState.QUEUED, worker_id=None, next_publish_at=now)

    def leases(self) -> Sequence[Lease]:
        """Every held lease."""
        model = self._model
        rows = self._session.execute(
            select(model.id, model.epoch, model.hb_seq).where(model.state == WorkState.RUNNING)
        )
        return [Lease(*row) for row in rows]

    def reap(self, lease: Lease) -> Row:
        """Take work away from a worker that has stopped renewing: due again, or failed.

        Raises:
            StateConflictError: if the lease was renewed or ended meanwhile.
        """
        model = self._model
        held = (model.id == lease.id, model.epoch == lease.epoch, model.hb_seq == lease.hb_seq)
        row = self._update(*held, model.state == WorkState.RUNNING, hb_seq=model.hb_seq)
        if row is None:
            raise StateConflictError(f"lease {lease.epoch} of {lease.id} was renewed or has ended")
        return self._fenced(lease.id, lease.epoch, **self._after_failure(row, WORKER_LOST))

    def due(self, limit: int, *, republish_s: float) -> Sequence[str]:
        """Ids of waiting work whose announcement is due; each is next due after `republish_s`."""
        model, now = self._model, self._clock.now()
        ids = self._session.scalars(
            select(model.id)
            .where(model.state == WorkState.QUEUED, model.next_publish_at <= now)
            .order_by(model.next_publish_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        again = now + timedelta(seconds=republish_s)
        self._session.execute(update(model).where(model.id.in_(ids)).values(next_publish_at=again))
        return ids

    def _after_failure(self, row: Row, error: dict[str, Any]) -> dict[str, Any]:
        lost = row.lost_attempts + 1
        if not error["retryable"] or lost >= self._max_attempts:
            return {"lost_attempts": lost, "error": error, **self._ended(WorkState.FAILED)}
        not_before = self._clock.now() + timedelta(seconds=self._retry.delay_s(lost))
        again = {"not_before": not_before, "next_publish_at": not_before}
        return {"lost_attempts": lost, "state": WorkState.QUEUED, "worker_id": None, **again}

    def _ended(self, state: WorkState) -> dict[str, Any]:
        return {"state": state, "worker_id": None, "finished_at": self._clock.now(), "next_publish_at": None}

    def _fenced(self, work_id: str, epoch: int, **values: Any) -> Row:
        model = self._model
        row = self._update(model.id == work_id, model.epoch == epoch, model.state == WorkState.RUNNING, **values)
        if row is None:
            raise LeaseLostError(f"lease {epoch} of {work_id} is no longer held")
        return row

    def _update(self, *conditions: ColumnElement[bool], **values: Any) -> Row | None:
        statement = update(self._model).where(*conditions).values(**values).returning(self._model)
        options = {"synchronize_session": False, "populate_existing": True}
        return self._session.scalars(statement, execution_options=options).one_or_none()
