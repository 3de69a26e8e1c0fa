"""The queue of jobs: who is next, how many are ahead, and how fast it moves. Fair among projects.

Among the due jobs of the highest priority, the project with the fewest running jobs comes first, then the oldest job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, func, or_, select

from service.shared.db.models import Job
from service.shared.states import LEASED, JobState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

    from service.shared.clock import Clock

QUEUED = Job.state == JobState.QUEUED
RECENT = 20


class QueueRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def lock_next(self) -> str | None:
        """Id of the job to claim, locked for this transaction; None if nothing is due or others hold all of it."""
        due = and_(QUEUED, or_(Job.not_before.is_(None), Job.not_before <= self._clock.now()))
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

    def jobs_ahead(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Of those of the jobs that are queued: how many will start earlier, if nothing else arrives or ends.

        One statement over the whole queue.
        """
        running = _running_jobs().subquery()
        in_project = func.row_number().over(partition_by=(Job.priority, Job.project), order_by=(Job.created_at, Job.id))
        turn = (func.coalesce(running.c.count, 0) + in_project).label("turn")
        waiting = (
            select(Job.id, Job.priority, Job.created_at, turn)
            .outerjoin(running, running.c.project == Job.project)
            .where(QUEUED)
            .subquery()
        )
        order = (waiting.c.priority.desc(), waiting.c.turn, waiting.c.created_at, waiting.c.id)
        places = select(waiting.c.id, (func.row_number().over(order_by=order) - 1).label("ahead")).subquery()
        rows = self._session.execute(select(places.c.id, places.c.ahead).where(places.c.id.in_(job_ids)))
        return {row.id: row.ahead for row in rows}

    def running(self) -> Sequence[Job]:
        """Jobs that workers hold."""
        return self._session.scalars(select(Job).where(Job.state.in_(LEASED))).all()

    def usual_duration_s(self) -> float | None:
        """Mean time in which the jobs that succeeded last were trained; None before the first."""
        last = (
            select(Job.gpu_seconds)
            .where(Job.state == JobState.SUCCEEDED)
            .order_by(Job.created_at.desc())
            .limit(RECENT)
            .subquery()
        )
        return self._session.scalar(select(func.avg(last.c.gpu_seconds)))

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
            .order_by(func.coalesce(running.c.count, 0), oldest, projects.c.name)
        )
        return self._session.scalars(query).all()


def _running_jobs() -> Select[str, int]:
    return select(Job.project, func.count().label("count")).where(Job.state.in_(LEASED)).group_by(Job.project)
