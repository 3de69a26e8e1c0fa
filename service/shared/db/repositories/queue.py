"""The queue of jobs: who is next, how many are ahead, and how fast it moves. Fair among projects.

Among the due jobs of the highest priority, the project with the fewest running jobs comes first, then the oldest job.
A worker claims in this order what it has the GPUs for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import and_, func, not_, or_, select, tuple_

from service.shared.db.models import Dataset, Job
from service.shared.states import LEASED, JobState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

    from service.shared.clock import Clock

QUEUED = Job.state == JobState.QUEUED
RECENT = 20


class QueueRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def lock_next(self, gpus: int) -> str | None:
        """Id of the job to claim with so many GPUs, locked for this transaction; None if nothing is due for them or
        others hold all of it.
        """
        due = and_(QUEUED, Job.gpus <= gpus, or_(Job.not_before.is_(None), Job.not_before <= self._clock.now()))
        for priority in self._priorities(due):
            for project in self._projects(due, priority):
                oldest = (
                    select(Job.id)
                    .where(due, Job.priority == priority, Job.project == project)
                    .order_by(Job.created_at, Job.id)
                    .limit(1)
                    .with_for_update(skip_locked=True)
                )
                if (job_id := self._session.scalar(oldest)) is not None:
                    return job_id
        return None

    def jobs_ahead(self, jobs: Sequence[Job]) -> dict[str, int]:
        """Of those of the jobs that are queued: how many will start earlier, if nothing else arrives or ends.

        Counts in the index instead of ranking the whole queue; as many statements for a page as for one.
        """
        queued = [job for job in jobs if job.state is JobState.QUEUED]
        if not queued:
            return {}
        first, last = min(map(_age, queued)), max(map(_age, queued))
        relevant = and_(QUEUED, Job.priority >= min(job.priority for job in queued))
        older = tuple_(Job.created_at, Job.id) < tuple_(*first)
        groups = select(Job.priority, Job.project, func.count(), func.count().filter(older)).where(relevant)
        lines = {
            (priority, project): _Line(total, older_than_page)
            for priority, project, total, older_than_page in self._session.execute(
                groups.group_by(Job.priority, Job.project)
            )
        }
        within = select(Job.priority, Job.project, Job.created_at, Job.id).where(
            relevant, Job.created_at.between(first[0], last[0]), not_(older)
        )
        for priority, project, created_at, job_id in self._session.execute(within.order_by(Job.created_at, Job.id)):
            lines[priority, project].ages.append((created_at, job_id))
        running = {row.project: row.number for row in self._session.execute(_running_jobs())}
        return {job.id: _ahead(job, lines, running) for job in queued}

    def running(self) -> Sequence[Job]:
        """Jobs that workers hold."""
        return self._session.scalars(select(Job).where(Job.state.in_(LEASED))).all()

    def usual_duration_s(self) -> float | None:
        """Mean time in which the jobs that succeeded last were trained; None before the first."""
        last = (
            select((Job.gpu_seconds / Job.gpus).label("seconds"))
            .where(Job.state == JobState.SUCCEEDED)
            .order_by(Job.created_at.desc())
            .limit(RECENT)
            .subquery()
        )
        return self._session.scalar(select(func.avg(last.c.seconds)))

    def seconds_per_image(self, base_model: str) -> list[float]:
        """Of the jobs on a base that succeeded last: GPU seconds over the images of their dataset and their epochs."""
        last = (
            select(Job.gpu_seconds, Job.result, Dataset.report)
            .join(Dataset, Dataset.id == Job.dataset_id)
            .where(Job.state == JobState.SUCCEEDED, Job.base_model == base_model)
            .order_by(Job.created_at.desc())
            .limit(RECENT)
        )
        paces = []
        for seconds, result, report in self._session.execute(last):
            images = ((report or {}).get("summary") or {}).get("images")
            epochs = (result or {}).get("epochs")
            if images and epochs:
                paces.append(seconds / (images * epochs))
        return paces

    def _priorities(self, due: ColumnElement[bool]) -> Iterator[int]:
        """Priorities of due jobs, highest first; each is looked up in the index when it is asked for."""
        highest = select(func.max(Job.priority)).where(due)
        priority = self._session.scalar(highest)
        while priority is not None:
            yield priority
            priority = self._session.scalar(highest.where(Job.priority < priority))

    def _projects(self, due: ColumnElement[bool], priority: int) -> Sequence[str]:
        """Projects with due jobs of a priority, the one whose turn it is first.

        Jumps through the index from project to project (a "loose index scan"), however many jobs each has.
        """
        here = and_(QUEUED, Job.priority == priority)
        projects = select(func.min(Job.project).label("name")).where(here).cte("projects", recursive=True)
        following = select(func.min(Job.project)).where(here, Job.project > projects.c.name).scalar_subquery()
        projects = projects.union_all(select(following).where(projects.c.name.is_not(None)))
        running = _running_jobs().subquery()
        oldest = (
            select(func.min(Job.created_at))
            .where(due, Job.priority == priority, Job.project == projects.c.name)
            .scalar_subquery()
        )
        query = (
            select(projects.c.name)
            .outerjoin(running, running.c.project == projects.c.name)
            .where(oldest.is_not(None))
            .order_by(func.coalesce(running.c.number, 0), oldest, projects.c.name)
        )
        return self._session.scalars(query).all()


def _running_jobs() -> Select[str, int]:
    return select(Job.project, func.count().label("number")).where(Job.state.in_(LEASED)).group_by(Job.project)


@dataclass
class _Line:
    """The queued jobs of one project at one priority, oldest first."""

    length: int
    older_than_page: int
    ages: list[tuple[datetime, str]] = field(default_factory=list)
    """Of the jobs from the oldest of the page on."""

    def older_than(self, job: Job) -> int:
        return self.older_than_page + bisect_left(self.ages, _age(job))


def _ahead(job: Job, lines: Mapping[tuple[int, str], _Line], running: Mapping[str, int]) -> int:
    """A claim takes the head of the line whose project has the fewest running jobs, of equals the oldest head."""
    busy = Counter(running)
    for (priority, project), line in lines.items():
        if priority > job.priority:
            busy[project] += line.length
    own = lines[job.priority, job.project].older_than(job)
    ahead = own + busy.total() - sum(running.values())
    for (priority, project), line in lines.items():
        if priority == job.priority and project != job.project:
            sooner = busy[job.project] + own - busy[project]  # of this line, by having fewer running
            is_older = 0 <= sooner < line.older_than(job)  # the next one, which has as many
            ahead += min(line.length, max(0, sooner)) + is_older
    return ahead


def _age(job: Job) -> tuple[datetime, str]:
    return job.created_at, job.id
