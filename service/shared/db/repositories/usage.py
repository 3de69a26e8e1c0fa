"""What projects have used: records that outlive the jobs, written by the transaction in which an attempt or job ends.

An attempt that goes on counts up to its last heartbeat: where its worker is lost, it counts no further than that.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import func, insert, select

from service.shared.db.models import AttemptUsage, Job, JobOutcome
from service.shared.db.models.base import EVERYBODY
from service.shared.states import LEASED, JobState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from datetime import date

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock


@dataclass(frozen=True)
class Spent:
    """GPU seconds of one project on one day."""

    project: str
    day: date
    gpu_seconds: float


@dataclass(frozen=True)
class Ended:
    """How many jobs of one project ended so on one day."""

    project: str
    day: date
    outcome: JobState
    jobs: int


class UsageRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def note_attempt(self, job: Job, started_at: datetime, ended_at: datetime) -> None:
        """Record what the job's present attempt took, on each of its days."""
        rows = [
            {
                "job_id": job.id,
                "epoch": job.epoch,
                "day": day,
                "project": job.project,
                "gpu_seconds": job.gpus * seconds,
            }
            for day, seconds in days_of(started_at, ended_at)
        ]
        if rows:
            self._session.execute(insert(AttemptUsage), rows)

    def note_outcomes(self, jobs: Collection[Job]) -> None:
        """Record how jobs have ended just now."""
        day = self._clock.now().date()
        rows = [{"job_id": job.id, "day": day, "project": job.project, "outcome": job.state} for job in jobs]
        if rows:
            self._session.execute(insert(JobOutcome), rows)

    def spent(self, first: date, last: date, projects: Collection[str] | None = None) -> list[Spent]:
        """GPU seconds by project and day, both days included, those of running attempts too; None: of all projects."""
        days = AttemptUsage.day.between(first, last)
        recorded = select(AttemptUsage.project, AttemptUsage.day, func.sum(AttemptUsage.gpu_seconds)).where(days)
        running = select(Job.project, Job.gpus, Job.attempt_started_at, Job.last_heartbeat_at).where(
            Job.state.in_(LEASED)
        )
        if projects is not None:
            recorded = recorded.where(AttemptUsage.project.in_(projects))
            # Chosen below: there are as many as workers, and SQLite would look for them in all jobs of the projects.
            running = running.execution_options(**EVERYBODY)
        found: defaultdict[tuple[str, date], float] = defaultdict(float)
        # Running ones first: one that ends between the two looks is then counted twice, for a moment, and not missed.
        for project, gpus, started_at, seen_at in self._session.execute(running):
            if projects is not None and project not in projects:
                continue
            for day, seconds in days_of(started_at, seen_at):
                if first <= day <= last:
                    found[project, day] += gpus * seconds
        for project, day, seconds in self._session.execute(recorded.group_by(AttemptUsage.project, AttemptUsage.day)):
            found[project, day] += seconds
        return [Spent(project, day, seconds) for (project, day), seconds in sorted(found.items())]

    def spent_this_month(self, projects: Collection[str]) -> dict[str, float]:
        """GPU seconds of projects since the month began (UTC)."""
        today = self._clock.now().date()
        total = dict.fromkeys(projects, 0.0)
        for each in self.spent(today.replace(day=1), today, projects) if projects else ():
            total[each.project] += each.gpu_seconds
        return total

    def ended(self, first: date, last: date, project: str | None = None) -> Iterable[Ended]:
        """Jobs that ended, by project, day and outcome; both days included."""
        query = select(JobOutcome.project, JobOutcome.day, JobOutcome.outcome, func.count()).where(
            JobOutcome.day.between(first, last)
        )
        if project is not None:
            query = query.where(JobOutcome.project == project)
        rows = self._session.execute(query.group_by(JobOutcome.project, JobOutcome.day, JobOutcome.outcome))
        return [Ended(*row) for row in rows]


def days_of(started_at: datetime | None, ended_at: datetime | None) -> Iterator[tuple[date, float]]:
    """The days (UTC) between two moments, and how many seconds lie on each; none where one of the two is not known."""
    if started_at is None or ended_at is None:
        return
    while started_at < ended_at:
        midnight = datetime.combine(started_at.date() + timedelta(days=1), time(), UTC)
        yield started_at.date(), (min(midnight, ended_at) - started_at).total_seconds()
        started_at = midnight
