"""What projects may use, and what they have used: kept when the jobs are long deleted."""

from datetime import date, datetime

from sqlalchemy import BigInteger, Date, Index
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, Id, OfProject, StorableName
from service.shared.db.models.jobs import stored_enum
from service.shared.states import JobState


class ProjectQuota(OfProject, Base):
    """The limits of a project that has its own; None: unlimited. Others have those of the settings."""

    __tablename__ = "project_quotas"

    project: Mapped[str] = mapped_column(StorableName(64), primary_key=True)
    max_active_jobs: Mapped[int | None] = mapped_column(BigInteger)
    max_running_gpus: Mapped[int | None] = mapped_column(BigInteger)
    max_gpu_seconds_per_month: Mapped[int | None] = mapped_column(BigInteger)
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_datasets: Mapped[int | None] = mapped_column(BigInteger)
    updated_at: Mapped[datetime]


class AttemptUsage(OfProject, Base):
    """What an attempt that has ended took on one day (UTC); append-only."""

    __tablename__ = "attempt_usage"
    __table_args__ = (Index(None, "project", "day"),)

    job_id: Mapped[str] = mapped_column(Id, primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    gpu_seconds: Mapped[float]


class JobOutcome(OfProject, Base):
    """How a job ended, and on which day (UTC); append-only."""

    __tablename__ = "job_outcomes"
    __table_args__ = (Index(None, "project", "day"),)

    job_id: Mapped[str] = mapped_column(Id, primary_key=True)
    day: Mapped[date] = mapped_column(Date)
    outcome: Mapped[JobState] = mapped_column(stored_enum(JobState))
