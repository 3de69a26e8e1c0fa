"""Jobs: create, find, list, claim, and the one door through which their state changes."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, exists, func, insert, or_, select, tuple_, update

from service.shared.db.models import Attempt, Job
from service.shared.db.repositories.events import EventRepository, NewEvent
from service.shared.db.repositories.fencing import returning_job
from service.shared.db.repositories.paging import page
from service.shared.errors import LeaseLostError, NotFoundError, StateConflictError
from service.shared.states import LEASED, TERMINAL, Actor, JobRequest, JobState, sources

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock


class JobRepository:
    def __init__(self, session: Session, clock: Clock, events: EventRepository) -> None:
        self._session = session
        self._clock = clock
        self._events = events

    def add(self, job: Job) -> Job:
        """Insert a new job in its initial state, with its first event."""
        now = self._clock.now()
        job.created_at = job.updated_at = now
        if job.state is JobState.QUEUED:
            job.queued_at = job.next_publish_at = now
        job.last_event_seq, job.attempt = 1, 0
        self._session.add(job)
        self._session.flush()
        self._events.store(job, [NewEvent("status", f"Job {job.state}", {"status": job.state})])
        return job

    def get(self, job_id: str) -> Job:
        """The job.

        Raises:
            NotFoundError: if there is none.
        """
        job = self._session.scalars(select(Job).where(Job.id == job_id)).one_or_none()
        if job is None:
            raise NotFoundError(f"There is no job {job_id!r}.")
        return job

    def list(
        self,
        *,
        limit: int,
        descending: bool = True,
        after: str | None = None,
        before: str | None = None,
        states: Sequence[JobState] = (),
        dataset_id: str | None = None,
        tag: str | None = None,
    ) -> tuple[Sequence[Job], bool]:
        """One page in order of creation, and whether more follow; `before` gives the page that ends there.

        Raises:
            NotFoundError: if `after` or `before` names no job.
        """
        query = select(Job)
        if states:
            query = query.where(Job.state.in_(states))
        if dataset_id is not None:
            query = query.where(Job.dataset_id == dataset_id)
        if tag is not None:
            query = query.where(self._has_tag(tag))
        return page(
            self._session,
            query,
            Job,
            limit=limit,
            descending=descending,
            after=None if after is None else self.get(after),
            before=None if before is None else self.get(before),
        )

    def jobs_ahead(self, job: Job) -> int | None:
        """Queued jobs that will be claimed before this one; None unless it is queued."""
        if job.state is not JobState.QUEUED:
            return None
        earlier = or_(
            Job.priority > job.priority,
            and_(Job.priority == job.priority, tuple_(Job.created_at, Job.id) < tuple_(job.created_at, job.id)),
        )
        return self._session.scalar(select(func.count()).where(Job.state == JobState.QUEUED, earlier)) or 0

    def move(
        self,
        job_id: str,
        to: JobState,
        by: Actor,
        *,
        epoch: int | None = None,
        hb_seq: int | None = None,
        reason: str | None = None,
        data: dict[str, Any] | None = None,
        changes: dict[str, Any] | None = None,
    ) -> Job:
        """Move the job to a state and write the event of it; of two racing callers exactly one succeeds.

        `epoch` and `hb_seq` narrow the move to that lease and heartbeat; `changes` are set on the row as well.

        Raises:
            NotFoundError: if there is no such job.
            LeaseLostError: if `epoch` was given and no longer holds the job.
            StateConflictError: if the job is not in a state from which `by` may move it there.
        """
        now = self._clock.now()
        statement = update(Job).where(Job.id == job_id, Job.state.in_(sources(to, by)))
        if epoch is not None:
            statement = statement.where(Job.epoch == epoch)
        if hb_seq is not None:
            statement = statement.where(Job.hb_seq == hb_seq)
        values = (changes or {}) | {"state": to, "status_reason": reason, "updated_at": now}
        values["last_event_seq"] = Job.last_event_seq + 1
        if to is JobState.QUEUED:
            values |= {"queued_at": now, "phase": None, "request": None}
            values["next_publish_at"] = values.get("not_before") or now
        if to in TERMINAL or to is JobState.PAUSED:
            values |= {"next_publish_at": None, "phase": None, "request": None}
        if to in TERMINAL:
            values["finished_at"] = now
        job = returning_job(self._session, statement.values(**values))
        if job is None:
            raise self._refusal(job_id, to, epoch)
        level = "error" if to is JobState.FAILED else "info"
        event = NewEvent("status", reason or f"Job {to}", {"status": to, **(data or {})}, level)
        self._events.store(job, [event])
        return job

    def request_cancel(self, job_id: str) -> Job:
        """Cancel the job, at once where no worker holds it, else through its worker; idempotent.

        Raises:
            NotFoundError: if there is no such job.
            StateConflictError: if the job has already ended otherwise.
        """
        job = self._session.scalars(select(Job).where(Job.id == job_id).with_for_update()).one_or_none()
        if job is None:
            raise self._refusal(job_id, JobState.CANCELLED, None)
        if job.state in (JobState.CANCELLING, JobState.CANCELLED):
            return job
        if job.state in LEASED:
            reason, request = "Cancel requested", JobRequest.CANCEL
            return self.move(job_id, JobState.CANCELLING, Actor.API, reason=reason, changes={"request": request})
        return self.move(job_id, JobState.CANCELLED, Actor.API, reason="Cancelled by request")

    def claim(self, worker_id: str, device: str | None = None) -> Job | None:
        """Take the best queued job for a worker: highest priority, then oldest. None if nothing is due.

        The job comes back `running` with a new `epoch` (the fencing token of every later write), the next
        `attempt`, and an open row of `attempts`.
        """
        now = self._clock.now()
        due = and_(Job.state == JobState.QUEUED, or_(Job.not_before.is_(None), Job.not_before <= now))
        order = (Job.priority.desc(), Job.created_at, Job.id)
        job_id = self._session.scalar(
            select(Job.id).where(due).order_by(*order).limit(1).with_for_update(skip_locked=True)
        )
        if job_id is None:
            return None
        job = self.move(
            job_id,
            JobState.RUNNING,
            Actor.WORKER,
            reason="Claimed by a worker",
            data={"worker": worker_id},
            changes=self._lease(worker_id, device, now),
        )
        self._session.execute(
            insert(Attempt).values(
                job_id=job.id,
                epoch=job.epoch,
                attempt=job.attempt,
                worker_id=worker_id,
                worker_device=device,
                started_at=now,
            )
        )
        return job

    def release_waiting(self, dataset_id: str, *, valid: bool) -> Sequence[str]:
        """Move the jobs that wait for a dataset's check to `queued`, or to `failed`; the ids that are now queued."""
        waiting = self._session.scalars(
            select(Job.id).where(Job.dataset_id == dataset_id, Job.state == JobState.VALIDATING_FILES).with_for_update()
        ).all()
        for job_id in waiting:
            if valid:
                self.move(job_id, JobState.QUEUED, Actor.INGEST, reason="Dataset is valid")
            else:
                error = {
                    "code": "dataset_invalid",
                    "message": "The dataset did not pass its check.",
                    "hint": f"Read /v1/datasets/{dataset_id}/validation, correct the data and upload it again.",
                    "retryable": False,
                    "attempt": 0,
                }
                self.move(
                    job_id, JobState.FAILED, Actor.INGEST, reason="Dataset is not valid", changes={"error": error}
                )
        return waiting if valid else []

    def due(self, limit: int, *, republish_s: float) -> Sequence[str]:
        """Ids of queued jobs whose announcement is due; each is next due after `republish_s`."""
        now = self._clock.now()
        ids = self._session.scalars(
            select(Job.id)
            .where(Job.state == JobState.QUEUED, Job.next_publish_at <= now)
            .order_by(Job.next_publish_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        again = now + timedelta(seconds=republish_s)
        self._session.execute(update(Job).where(Job.id.in_(ids)).values(next_publish_at=again))
        return ids

    def unfinished_on(self, dataset_id: str, *, limit: int) -> Sequence[str]:
        """Ids of jobs that have not ended and need the dataset, oldest first."""
        live = (Job.dataset_id == dataset_id, Job.state.not_in(TERMINAL))
        return self._session.scalars(select(Job.id).where(*live).order_by(Job.created_at, Job.id).limit(limit)).all()

    @staticmethod
    def _lease(worker_id: str, device: str | None, now: datetime) -> dict[str, Any]:
        return {
            "epoch": Job.epoch + 1,
            "attempt": Job.attempt + 1,
            "hb_seq": 0,
            "worker_id": worker_id,
            "worker_device": device,
            "last_heartbeat_at": now,
            "started_at": func.coalesce(Job.started_at, now),
            "phase": "starting",
            "request": None,
            "next_publish_at": None,
            "not_before": None,
        }

    def _has_tag(self, tag: str) -> ColumnElement[bool]:
        if self._session.get_bind().dialect.name == "postgresql":
            elements = func.jsonb_array_elements_text(Job.tags).table_valued("value")
        else:
            elements = func.json_each(Job.tags).table_valued("value")
        return exists(select(1).select_from(elements).where(elements.c.value == tag))

    def _refusal(self, job_id: str, to: JobState, epoch: int | None) -> Exception:
        job = self._session.scalars(
            select(Job).where(Job.id == job_id), execution_options={"populate_existing": True}
        ).one_or_none()
        if job is None:
            return NotFoundError(f"There is no job {job_id!r}.")
        if epoch is not None and job.epoch != epoch:
            return LeaseLostError(f"lease {epoch} of {job_id} is no longer held")
        reason = f" ({job.status_reason})" if job.status_reason else ""
        return StateConflictError(f"Job {job_id} is {job.state}{reason} and cannot become {to}.")
