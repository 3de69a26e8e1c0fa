"""Events of jobs: append-only, numbered from 1 without gaps per job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select

from sam3_lora.events import EventType, Level
from service.shared.db.models import Base, Job, JobEvent
from service.shared.db.repositories.fencing import write_fenced
from service.shared.errors import NotFoundError
from service.shared.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.states import JobState


NEW_EVENTS = insert(Base.metadata.tables[JobEvent.__tablename__])


@dataclass(frozen=True)
class NewEvent:
    """An event before it has a number. `type` is one of `sam3_lora.events.EventType`, or `status` for a move.

    `id` is given where the caller has to know it; else it gets one.
    """

    type: str
    message: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    level: str = Level.INFO
    id: str | None = None


@dataclass(frozen=True)
class Head:
    """How far a job has come: its state, and the ends of its events and of its log."""

    state: JobState
    last_event_seq: int
    log_bytes: int


class EventRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def append(self, job_id: str, epoch: int, events: Sequence[NewEvent]) -> None:
        """Store events of the attempt that holds the job, in order.

        Raises:
            LeaseLostError: if `epoch` no longer holds the job.
        """
        if events:
            job = write_fenced(self._session, job_id, epoch, last_event_seq=Job.last_event_seq + len(events))
            self.store(job, events)

    def store(self, job: Job, events: Sequence[NewEvent]) -> None:
        """Insert events whose numbers, the last of `job.last_event_seq`, this transaction has already taken."""
        self.store_all({job: events})

    def store_all(self, events: Mapping[Job, Sequence[NewEvent]]) -> None:
        """As `store`, for several jobs."""
        now = self._clock.now()
        rows = [
            {
                "job_id": job.id,
                "seq": job.last_event_seq - len(own) + 1 + index,
                "id": event.id or new_id("evt"),
                "attempt": job.attempt,
                "type": event.type,
                "level": event.level,
                "message": event.message,
                "data": event.data,
                "created_at": now,
            }
            for job, own in events.items()
            for index, event in enumerate(own)
        ]
        if rows:
            self._session.execute(NEW_EVENTS, rows)

    def list_evaluations(self, job_id: str) -> Sequence[JobEvent]:
        """What every validation of the job found, oldest first."""
        query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type == EventType.EVALUATION)
        return self._session.scalars(query.order_by(JobEvent.seq)).all()

    def get(self, job_id: str, event_id: str) -> JobEvent:
        """An event of the job.

        Raises:
            NotFoundError: if there is none with this id.
        """
        query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id == event_id)
        event = self._session.scalars(query).one_or_none()
        if event is None:
            raise NotFoundError(f"Job {job_id} has no event {event_id!r}.")
        return event

    def exists(self, job_id: str, event_id: str) -> bool:
        """Whether the job has an event with this id."""
        query = select(JobEvent.seq).where(JobEvent.job_id == job_id, JobEvent.id == event_id)
        return self._session.scalar(query) is not None

    def list(
        self,
        job_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 100,
        descending: bool = False,
        types: Collection[str] = (),
        levels: Collection[str] = (),
    ) -> Sequence[JobEvent]:
        """Events with `seq` above `after` and below `before`; of these types and levels, where any are given."""
        query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after)
        if before is not None:
            query = query.where(JobEvent.seq < before)
        if types:
            query = query.where(JobEvent.type.in_(types))
        if levels:
            query = query.where(JobEvent.level.in_(levels))
        order = JobEvent.seq.desc() if descending else JobEvent.seq
        return self._session.scalars(query.order_by(order).limit(limit)).all()

    def heads(self, job_ids: Collection[str]) -> dict[str, Head]:
        """Heads of those of the jobs that exist, in one look: all that a head counts can be read afterwards."""
        there = (Job.id.in_(job_ids), Job.deleted_at.is_(None))
        query = select(Job.id, Job.state, Job.last_event_seq, Job.log_bytes).where(*there)
        return {row.id: Head(row.state, row.last_event_seq, row.log_bytes) for row in self._session.execute(query)}
