"""Jobs: create, find, list, claim, and the one door through which their state changes."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import bindparam, case, delete, false, func, insert, not_, or_, select, tuple_, update
from sqlalchemy.orm import aliased

from service.shared.db.models import (
    Artifact,
    Attempt,
    Base,
    Checkpoint,
    Dataset,
    Job,
    JobEvent,
    JobLabel,
    LogChunk,
    MetricPoint,
)
from service.shared.db.repositories.events import EventRepository, NewEvent
from service.shared.db.repositories.fencing import returning_job
from service.shared.db.repositories.inserts import insert_new, pipelined
from service.shared.db.repositories.job_filters import ANY_JOB, TAG, JobFilter
from service.shared.db.repositories.paging import page
from service.shared.errors import LeaseLostError, NotFoundError, StateConflictError
from service.shared.states import LIVE, TERMINAL, Actor, DatasetState, JobRequest, JobState, sources
from service.shared.tallies import TallyName

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime
    from typing import TypeAlias

    from sqlalchemy import ColumnElement, CursorResult
    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.db.repositories.outbox import Outbox
    from service.shared.db.repositories.queue import QueueRepository
    from service.shared.db.repositories.tallies import TallyRepository
    from service.shared.db.repositories.usage import UsageRepository

    Version: TypeAlias = tuple[datetime, datetime | None, int]

_THERE = Job.deleted_at.is_(None)
# Asked all the time, and building a statement takes longer than running it.
_THESE = (Job.id.in_(bindparam("job_ids", expanding=True)), _THERE)
ALL = select(Job).where(*_THESE)
VERSIONS = select(Job.id, Job.updated_at, Job.last_heartbeat_at, Job.last_event_seq).where(*_THESE)
WAITED = select(Job.queued_at, Job.not_before).where(Job.id == bindparam("job_id"))
NEW_LABELS = insert(Base.metadata.tables[JobLabel.__tablename__])


class JobRepository:
    def __init__(
        self,
        session: Session,
        clock: Clock,
        events: EventRepository,
        queue: QueueRepository,
        outbox: Outbox,
        tallies: TallyRepository,
        usage: UsageRepository,
    ) -> None:
        self._session = session
        self._clock = clock
        self._events = events
        self._queue = queue
        self._outbox = outbox
        self._tallies = tallies
        self._usage = usage

    def add(self, job: Job, *events: NewEvent) -> Job:
        """Insert a new job in its initial state, with an event of that and these."""
        self.add_all({job: events})
        return job

    def add_all(self, jobs: Mapping[Job, Sequence[NewEvent]]) -> None:
        """Insert new jobs, each in its initial state with an event of that and these; as many statements as for one."""
        now = self._clock.now()
        for job, events in jobs.items():
            job.created_at = job.updated_at = now
            if job.state is JobState.QUEUED:
                job.queued_at = job.next_publish_at = now
            job.last_event_seq, job.attempt = 1 + len(events), 0
        with pipelined(self._session):
            insert_new(self._session, jobs)
            self._label(jobs)
            self._events.store_all(
                {job: [_status(job.state, f"Job {job.state}"), *events] for job, events in jobs.items()}
            )
        self._note(jobs)

    def get(self, job_id: str, *, lock: bool = False, shared: bool = False) -> Job:
        """The job; with `lock`, nobody else changes it until the transaction ends, nor locks it unless `shared`.

        Raises:
            NotFoundError: if there is none, or it was deleted.
        """
        query = select(Job).where(Job.id == job_id, _THERE).execution_options(populate_existing=lock)
        job = self._session.scalars(query.with_for_update(read=shared) if lock else query).one_or_none()
        if job is None:
            raise unknown_job(job_id)
        return job

    def get_all(self, job_ids: Sequence[str]) -> Sequence[Job]:
        """Those of the jobs that there are."""
        return self._session.scalars(ALL, {"job_ids": job_ids}).all()

    def versions(self, job_ids: Collection[str]) -> dict[str, Version]:
        """Of those of the jobs that there are: what changes whenever anything that clients see of the row does."""
        rows = self._session.execute(VERSIONS, {"job_ids": job_ids})
        return {job_id: (updated_at, beat_at, seq) for job_id, updated_at, beat_at, seq in rows}

    def list(
        self,
        *,
        limit: int,
        descending: bool = True,
        after: str | None = None,
        before: str | None = None,
        matching: JobFilter = ANY_JOB,
    ) -> tuple[Sequence[Job], bool]:
        """One page in order of creation, and whether more follow; `before` gives the page that ends there.

        Raises:
            NotFoundError: if `after` or `before` names no job.
        """
        query = select(Job).where(_THERE, *matching.conditions())
        label = matching.leading_label()
        return page(
            self._session,
            query if label is None else query.join(JobLabel, label),
            Job,
            limit=limit,
            descending=descending,
            after=after,
            before=before,
            get=self.get,
            position=None if label is None else (JobLabel.created_at, JobLabel.job_id),
        )

    def move(
        self,
        job_id: str,
        to: JobState,
        by: Actor,
        *,
        epoch: int | None = None,
        reason: str | None = None,
        data: dict[str, Any] | None = None,
        changes: dict[str, Any] | None = None,
    ) -> Job:
        """Move the job to a state and write the event of it; of two racing callers exactly one succeeds.

        `epoch` narrows the move to that lease; `changes` are set on the row as well.

        Raises:
            NotFoundError: if there is no such job.
            LeaseLostError: if `epoch` was given and no longer holds the job.
            StateConflictError: if the job is not in a state from which `by` may move it there.
        """
        statement = update(Job).where(Job.id == job_id, Job.state.in_(sources(to, by)))
        if epoch is not None:
            statement = statement.where(Job.epoch == epoch)
        job = returning_job(self._session, statement.values(**self._moved(to, reason, changes or {})))
        if job is None:
            raise self._refusal(job_id, to, epoch)
        self._events.store(job, [_status(to, reason or f"Job {to}", **(data or {}))])
        self._note([job])
        return job

    def request(self, job_id: str, what: JobRequest, reason: str) -> Job:
        """Leave a request for the job's worker without moving the job, with an event of it.

        Raises:
            NotFoundError: if there is no such job.
        """
        return self.change(job_id, NewEvent("message", reason), request=what, status_reason=reason)

    def change(self, job_id: str, event: NewEvent, **values: Any) -> Job:
        """Set columns that say nothing about the job's state, with an event of it.

        Raises:
            NotFoundError: if there is no such job.
        """
        values |= {"updated_at": self._clock.now(), "last_event_seq": Job.last_event_seq + 1}
        job = returning_job(self._session, update(Job).where(Job.id == job_id, _THERE).values(**values))
        if job is None:
            raise unknown_job(job_id)
        self._events.store(job, [event])
        if values.keys() & {"tags", "labels"}:
            self._session.execute(delete(JobLabel).where(JobLabel.job_id == job_id))
            self._label([job])
        return job

    def mark_deleted(self, job_id: str) -> None:
        """Hide an ended job with its files for good; the reconciler deletes them, but for its model's, then its rows.

        Raises:
            NotFoundError: if there is none that has ended, or it was already deleted.
        """
        ended = update(Job).where(Job.id == job_id, _THERE, Job.state.in_(TERMINAL))
        if returning_job(self._session, ended.values(deleted_at=self._clock.now())) is None:
            raise unknown_job(job_id)
        for owner in (Checkpoint, Artifact):
            self._session.execute(delete(owner).where(owner.job_id == job_id))

    def deleted(self, limit: int) -> Sequence[str]:
        """Ids of deleted jobs that are still kept."""
        return self._session.scalars(select(Job.id).where(Job.deleted_at.is_not(None)).limit(limit)).all()

    def purge(self, job_id: str, *, limit: int) -> bool:
        """Remove so many of the rows of a deleted job, which may have millions; whether none is left."""
        if self._session.scalar(select(Job.deleted_at).where(Job.id == job_id)) is None:
            return True
        for owner in (MetricPoint, JobEvent, LogChunk):
            table = Base.metadata.tables[owner.__tablename__]
            key = table.primary_key.columns
            some = select(*key).where(table.c.job_id == job_id).limit(limit)
            gone = self._session.execute(delete(table).where(tuple_(*key).in_(some)))
            limit -= cast("CursorResult[Any]", gone).rowcount
            if limit <= 0:
                return False
        self._session.execute(delete(Job).where(Job.id == job_id))
        return True

    def ended(self, older_than_s: float, *, limit: int) -> Sequence[str]:
        """Ids of jobs that ended longer ago and no unfinished job needs, roughly the oldest first."""
        since = self._clock.now() - timedelta(seconds=older_than_s)
        # Creation came before the end, and there is an index in its order.
        over = (_THERE, Job.state.in_(TERMINAL), Job.created_at <= since, Job.finished_at <= since)
        # Else the same few that cannot be deleted would be all that is ever found.
        user = aliased(Job)
        followed = select(user.resumes_from).where(user.resumes_from.is_not(None), user.state.in_(LIVE))
        started_from = (
            select(Checkpoint.job_id)
            .join(user, user.init_checkpoint_id == Checkpoint.id)
            .where(user.init_checkpoint_id.is_not(None), user.state.in_(LIVE))
        )
        needless = (Job.id.not_in(followed), Job.id.not_in(started_from))
        return self._session.scalars(
            select(Job.id).where(*over, *needless).order_by(Job.created_at, Job.id).limit(limit)
        ).all()

    def waiting_for_checkpoints_of(self, job_id: str) -> Sequence[str]:
        """Unfinished jobs that go on, or start, from a checkpoint of this one."""
        live = Job.state.in_(LIVE)
        # Each from its own small index: PostgreSQL takes none for one condition or the other.
        follow = select(Job.id).where(Job.resumes_from == job_id, live)
        start = (
            select(Job.id)
            .join(Checkpoint, Checkpoint.id == Job.init_checkpoint_id)
            .where(Checkpoint.job_id == job_id, Job.init_checkpoint_id.is_not(None), live)
        )
        return sorted({*self._session.scalars(follow), *self._session.scalars(start)})

    def claim(self, worker_id: str, device: str | None = None, *, gpus: int = 1) -> Job | None:
        """Take the job for a worker with so many GPUs whose turn it is (`QueueRepository`); None if nothing is due.

        The job comes back `running` with a new `epoch` (the fencing token of every later write), the next
        `attempt`, and an open row of `attempts`.
        """
        job_id = self._queue.lock_next(gpus)
        if job_id is None:
            return None
        now = self._clock.now()
        due_at = max(at for at in self._session.execute(WAITED, {"job_id": job_id}).one() if at is not None)
        job = self.move(
            job_id,
            JobState.RUNNING,
            Actor.WORKER,
            reason="Claimed by a worker",
            data={"worker": worker_id},
            changes=self._lease(worker_id, device, now),
        )
        self._tallies.observe(TallyName.QUEUE_WAIT, (now - due_at).total_seconds())
        self._note_datasets(job)
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

    def _note_datasets(self, job: Job) -> None:
        """Complete `resolved` with the hashes of datasets that were still being fetched when the job was created."""
        ids = {"dataset_sha256": job.dataset_id, "validation_dataset_sha256": job.validation_dataset_id}
        missing = {name: dataset_id for name, dataset_id in ids.items() if job.resolved.get(name) == ""}
        if missing:
            hashes = select(Dataset.id, Dataset.sha256).where(Dataset.id.in_(missing.values()))
            found = {dataset_id: sha256 for dataset_id, sha256 in self._session.execute(hashes)}  # noqa: C416 - typed
            job.resolved = job.resolved | {name: found.get(str(id_), "") for name, id_ in missing.items()}
            self._session.flush()

    def release_waiting(self, dataset_id: str, *, valid: bool, error: Mapping[str, Any] | None = None) -> Sequence[str]:
        """Move the jobs that wait for a dataset's check alone to `queued`, or all to `failed`; the ids now queued.

        Args:
            error: the dataset's, whose check itself failed: there is no report that would tell why.
        """
        waiting = (_uses(dataset_id), Job.state == JobState.VALIDATING_FILES)
        # The rows are locked first: of two datasets that become ready at once, the later one sees the earlier.
        self._session.execute(select(Job.id).where(*waiting).order_by(Job.id).with_for_update())
        if not valid:
            if error is None:
                message = f"Dataset {dataset_id} did not pass its check."
                hint = f"Read /v1/datasets/{dataset_id}/validation, correct the data and upload it again."
            else:
                message, hint = f"Dataset {dataset_id} could not be checked: {error['message']}", error["hint"]
            failure = {"code": "dataset_invalid", "message": message, "hint": hint, "retryable": False, "attempt": 0}
            self._move_all(waiting, JobState.FAILED, "Dataset is not valid", {"error": failure})
            return []
        unchecked = select(Dataset.id).where(Dataset.state != DatasetState.READY, Dataset.id != dataset_id)
        still = or_(Job.dataset_id.in_(unchecked), func.coalesce(Job.validation_dataset_id.in_(unchecked), false()))
        return self._move_all((*waiting, not_(still)), JobState.QUEUED, "Dataset is valid", {})

    def _move_all(
        self, which: Sequence[ColumnElement[bool]], to: JobState, reason: str, changes: dict[str, Any]
    ) -> Sequence[str]:
        """Move jobs that wait for a check, however many, with an event each; their ids."""
        statement = update(Job).where(*which).values(**self._moved(to, reason, changes))
        options = {"synchronize_session": False, "populate_existing": True}
        moved = self._session.scalars(statement.returning(Job), execution_options=options).all()
        self._events.store_all({job: [_status(to, reason)] for job in moved})
        self._note(moved)
        return [job.id for job in moved]

    def _note(self, jobs: Collection[Job]) -> None:
        """Have the moves that jobs have just made counted, and told to who wants to know."""
        for job in jobs:
            self._outbox.note_job(job)
            self._tallies.count(TallyName.JOBS, job.state)
            if job.state is JobState.FAILED:
                self._tallies.count(TallyName.FAILURES, str((job.error or {}).get("code")))
            if job.finished_at is not None and job.started_at is not None:
                self._tallies.observe(TallyName.DURATION, (job.finished_at - job.started_at).total_seconds(), job.state)
        self._usage.note_outcomes([job for job in jobs if job.state in TERMINAL])

    def _moved(self, to: JobState, reason: str | None, changes: dict[str, Any]) -> dict[str, Any]:
        """The columns of a job that moves to a state, with an event."""
        now = self._clock.now()
        values = changes | {"state": to, "status_reason": reason, "updated_at": now}
        values["last_event_seq"] = Job.last_event_seq + 1
        if to is JobState.QUEUED:
            values |= {"queued_at": now, "phase": None}
            values["next_publish_at"] = values.get("not_before") or now
        if to in TERMINAL or to is JobState.PAUSED:
            values |= {"next_publish_at": None, "phase": None, "request": None}
        if to in TERMINAL:
            values["finished_at"] = now
        return values

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
        live = (_uses(dataset_id), Job.state.not_in(TERMINAL))
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
            "attempt_started_at": now,
            "started_at": func.coalesce(Job.started_at, now),
            "phase": "starting",
            "request": case((Job.request == JobRequest.STOP, Job.request)),
            "next_publish_at": None,
            "not_before": None,
        }

    def _label(self, jobs: Iterable[Job]) -> None:
        rows = [
            {"job_id": job.id, "key": key, "value": value, "created_at": job.created_at}
            for job in jobs
            for key, value in [*((TAG, tag) for tag in job.tags), *job.labels.items()]
        ]
        if rows:
            self._session.execute(NEW_LABELS, rows)

    def _refusal(self, job_id: str, to: JobState, epoch: int | None) -> Exception:
        job = self._session.scalars(
            select(Job).where(Job.id == job_id), execution_options={"populate_existing": True}
        ).one_or_none()
        if job is None:
            return unknown_job(job_id)
        if epoch is not None and job.epoch != epoch:
            return LeaseLostError(f"lease {epoch} of {job_id} is no longer held")
        reason = f" ({job.status_reason})" if job.status_reason else ""
        return StateConflictError(f"Job {job_id} is {job.state}{reason} and cannot become {to}.")


def _status(to: JobState, message: str, **data: Any) -> NewEvent:
    level = "error" if to is JobState.FAILED else "info"
    return NewEvent("status", message, {"status": to, **data}, level)


def _uses(dataset_id: str) -> ColumnElement[bool]:
    return or_(Job.dataset_id == dataset_id, Job.validation_dataset_id == dataset_id)


def unknown_job(job_id: str) -> NotFoundError:
    return NotFoundError(f"There is no job {job_id!r}.")
