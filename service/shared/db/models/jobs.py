"""Jobs, their attempts, and what a running job leaves behind: events, metric points, log text."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Enum, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, Id, OfProject, StorableName
from service.shared.states import JobRequest, JobState

Name = StorableName(200)


def _values(kind: type[Any]) -> list[str]:
    return [member.value for member in kind]


def stored_enum(kind: type[Any], length: int = 24) -> Enum:
    """An enumeration kept as its values in plain text; triggers and checks guard it, not a database type."""
    return Enum(kind, native_enum=False, create_constraint=False, length=length, values_callable=_values)


class Job(OfProject, Base):
    """One training job: the truth about it, and the outbox of its announcement to workers.

    `epoch` is the fencing token: each claim raises it, each later write of that worker carries it.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "state", "priority", "project", "created_at", "id"),
        Index(None, "state", "created_at", "id"),
        Index(None, "project", "created_at", "id"),
        Index(None, "base_model", "created_at", "id"),
        Index(None, "created_at", "id"),
        Index(None, "dataset_id", "created_at", "id"),
        Index(None, "validation_dataset_id"),
        Index(None, "sweep_id", "created_at", "id"),
        # Of those that wait alone; with the state as well, without which SQLite prefers an index that begins with it.
        Index(
            None, "state", "queued_at", sqlite_where=text("state = 'queued'"), postgresql_where=text("state = 'queued'")
        ),
        # Only of what is deleted: SQLite would take it for lists, all of whose jobs have this null.
        Index(
            None,
            "deleted_at",
            sqlite_where=text("deleted_at IS NOT NULL"),
            postgresql_where=text("deleted_at IS NOT NULL"),
        ),
        *(
            Index(
                None,
                column,
                sqlite_where=text(f"{column} IS NOT NULL"),
                postgresql_where=text(f"{column} IS NOT NULL"),
            )
            for column in ("resumes_from", "init_checkpoint_id")
        ),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    state: Mapped[JobState] = mapped_column(stored_enum(JobState))
    status_reason: Mapped[str | None]
    phase: Mapped[str | None] = mapped_column(Name)
    request: Mapped[JobRequest | None] = mapped_column(stored_enum(JobRequest))

    base_model: Mapped[str] = mapped_column(Name)
    dataset_id: Mapped[str] = mapped_column(Id, ForeignKey("datasets.id"))
    validation_dataset_id: Mapped[str | None] = mapped_column(Id)
    init_checkpoint_id: Mapped[str | None] = mapped_column(Id)
    """Earlier adapter that training starts from."""
    retry_of: Mapped[str | None] = mapped_column(Id)
    resumes_from: Mapped[str | None] = mapped_column(Id)
    """Job whose last good checkpoint training goes on from while this one has none of its own."""
    sweep_id: Mapped[str | None] = mapped_column(Id)
    trial: Mapped[dict[str, Any] | None]
    """The values that it tries for its sweep, by path in `config`."""
    config: Mapped[dict[str, Any]]
    """As submitted."""
    resolved: Mapped[dict[str, Any]]
    """`config`: a complete `JobConfig`; `run`: what the trainer reported as used."""
    seed: Mapped[int] = mapped_column(BigInteger)
    gpus: Mapped[int] = mapped_column(default=1, server_default="1")
    """Needed at the same time, of one worker."""
    priority: Mapped[int]
    max_runtime_s: Mapped[int]
    max_attempts: Mapped[int]
    tags: Mapped[list[str]]
    labels: Mapped[dict[str, Any]] = mapped_column("metadata")
    origin: Mapped[dict[str, Any] | None]
    """The request that created it: `request_id`, and `traceparent` if it is traced."""

    epoch: Mapped[int] = mapped_column(default=0)
    attempt: Mapped[int] = mapped_column(default=0)
    """Claims so far."""
    lost_attempts: Mapped[int] = mapped_column(default=0)
    """Attempts that ended without a result through a lost worker or a transient failure."""
    hb_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    last_heartbeat_at: Mapped[datetime | None]
    attempt_started_at: Mapped[datetime | None]
    """When the last claim was made."""
    worker_id: Mapped[str | None] = mapped_column(Name)
    worker_device: Mapped[str | None] = mapped_column(Name)
    next_publish_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]

    progress: Mapped[dict[str, Any] | None]
    trainable: Mapped[dict[str, Any] | None]
    best: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    gpu_seconds: Mapped[float] = mapped_column(default=0.0)
    """Seconds of all attempts that have ended, times `gpus`."""
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)

    last_event_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    log_bytes: Mapped[int] = mapped_column(BigInteger, default=0)

    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    queued_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    """Set: gone for clients, and soon for good."""


class JobLabel(Base):
    """Index over the tags (under the key "") and the metadata of jobs."""

    __tablename__ = "job_labels"
    __table_args__ = (Index(None, "key", "value", "created_at", "job_id"),)

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(StorableName(64), primary_key=True)
    value: Mapped[str] = mapped_column(StorableName(512), primary_key=True)
    created_at: Mapped[datetime]
    """That of the job, so that a list of labelled jobs is read off the index, in order."""


class Attempt(Base):
    """One claim of a job by a worker."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int]
    worker_id: Mapped[str] = mapped_column(Name)
    worker_device: Mapped[str | None] = mapped_column(Name)
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[JobState | None] = mapped_column(stored_enum(JobState))
    """State the job went to when the attempt ended."""
    reason: Mapped[str | None]


class JobEvent(Base):
    """Something that happened to a job; append-only, `seq` counts from 1 without gaps per job."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(Id, unique=True)
    attempt: Mapped[int]
    type: Mapped[str] = mapped_column(Name)
    level: Mapped[str] = mapped_column(Name)
    message: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class MetricPoint(Base):
    """One value of one metric at one step; a later attempt that repeats the step replaces it."""

    __tablename__ = "metric_points"

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    epoch: Mapped[float | None]
    value: Mapped[float | None]
    """None: the value was not finite."""
    created_at: Mapped[datetime]


class LogChunk(Base):
    """A piece of a job's log at `offset` bytes from its start."""

    __tablename__ = "log_chunks"

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    offset: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    text: Mapped[str]
