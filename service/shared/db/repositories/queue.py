"""The queue of jobs: who is next, how many are ahead, and how fast it moves. Fair among projects.

Among the due jobs of the highest priority, the project with the fewest running jobs comes first, then the oldest job.
A worker claims in this order what it has the GPUs for. A project whose quota has no room for its next job waits with
all that come behind it; what room there is, is kept for that job while a worker that is large enough for it lives.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, or_, select

from service.shared.db.models import Dataset, Job
from service.shared.db.models.base import EVERYBODY
from service.shared.db.repositories.times import wait_is_over
from service.shared.states import LEASED, JobState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import TypeAlias

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.db.repositories.quotas import Limits, QuotaRepository
    from service.shared.db.repositories.workers import WorkerRepository

    Lines: TypeAlias = dict[tuple[int, str], "Line"]  # who waits, by priority and project

QUEUED = Job.state == JobState.QUEUED
RECENT = 20

# Asked all the time, and building a statement takes longer than running it.
# All of it is about the whole queue, whoever asks.
RUNNING = (
    select(Job.project, Job.worker_id, Job.started_at, Job.progress, Job.gpus)
    .where(Job.state.in_(LEASED))
    .execution_options(**EVERYBODY)
)
_SECONDS = (Job.gpu_seconds / Job.gpus).label("seconds")
_LAST = select(_SECONDS).where(Job.state == JobState.SUCCEEDED).order_by(Job.created_at.desc()).limit(RECENT)
USUAL_DURATION = select(func.avg(_LAST.subquery().c.seconds)).execution_options(**EVERYBODY)
LINES = (
    select(Job.priority, Job.project, func.count())
    .where(QUEUED)
    .group_by(Job.priority, Job.project)
    .execution_options(**EVERYBODY)
)
EXACT = STEP = 200
_NUMBER = func.row_number().over(partition_by=(Job.priority, Job.project), order_by=(Job.created_at, Job.id))
_NUMBERED = select(Job.priority, Job.project, Job.created_at, Job.id, _NUMBER.label("number")).where(QUEUED).subquery()
MARKS = (
    select(_NUMBERED)
    .where(or_(_NUMBERED.c.number <= EXACT, _NUMBERED.c.number % STEP == 0))
    .order_by(_NUMBERED.c.number)
    .execution_options(**EVERYBODY)
)
LONG_QUEUE = 1000  # jobs; counting them takes milliseconds
JOBS_PER_S_KEPT = 10_000
KEPT_S = 2.0  # at least: a thousand jobs would be counted with every fourth page
GRACE_S = 10.0
AFTER_ALL_IDS = "~"


@dataclass(frozen=True)
class RunningJob:
    """What the queue has to know of a job that a worker holds."""

    project: str
    worker_id: str | None
    started_at: datetime | None
    progress: dict[str, Any] | None
    gpus: int


@dataclass
class Line:
    """The queued jobs of one project at one priority, oldest first."""

    length: int
    ages: list[tuple[datetime, str]] = field(default_factory=list)
    """Of the first jobs, and of some behind them."""
    numbers: list[int] = field(default_factory=list)
    """Which in the line they are, from 1."""

    def older_than(self, age: tuple[datetime, str]) -> int:
        """Jobs before this moment and id; not more than there are."""
        place = bisect_left(self.ages, age)
        return self.numbers[place - 1] if place else 0

    def append(self, job: Job) -> None:
        """The job stands behind all others now."""
        self.length += 1
        if self.length <= EXACT or self.length % STEP == 0:
            self.ages.append(_age(job))
            self.numbers.append(self.length)


def with_newest(lines: Lines, jobs: Iterable[Job]) -> Lines:
    """The lines with those of the jobs that are queued, which were all created later, behind the others."""
    added: Lines = {}
    for job in jobs:
        if job.state is JobState.QUEUED:
            place = (job.priority, job.project)
            if place not in added:
                known = lines.get(place, Line(0))
                added[place] = Line(known.length, list(known.ages), list(known.numbers))
            added[place].append(job)
    return lines | added


@dataclass
class QueueMemory:
    """The lines of a long queue as one process counted them last; None if the queue was short."""

    lines: Lines | None = None
    counting: Lock = field(default_factory=Lock)
    _good_until_s: float = 0.0

    def is_good(self, now_s: float, grace_s: float = 0.0) -> bool:
        """Whether they need not be counted again yet."""
        return self.lines is not None and now_s < self._good_until_s + grace_s

    def keep(self, lines: Lines, now_s: float) -> Lines:
        """Remember them for a time that is worth the counting; short ones not at all."""
        length = sum(line.length for line in lines.values())
        self._good_until_s = now_s + max(KEPT_S, length / JOBS_PER_S_KEPT)
        self.lines = lines if length >= LONG_QUEUE else None
        return lines


class QueueRepository:
    def __init__(
        self,
        session: Session,
        clock: Clock,
        memory: QueueMemory,
        quotas: QuotaRepository,
        workers: WorkerRepository,
        lease_timeout_s: float,
        longest_wait_s: float,
    ) -> None:
        """`longest_wait_s`: for another attempt."""
        self._session = session
        self._clock = clock
        self._memory = memory
        self._quotas = quotas
        self._workers = workers
        self._lease_timeout_s = lease_timeout_s
        self._longest_wait_s = longest_wait_s

    def lock_next(self, gpus: int) -> str | None:
        """Id of the job to claim with so many GPUs, locked for this transaction; None if nothing is due for them or
        others hold all of it.
        """
        of_any_size = and_(QUEUED, wait_is_over(Job.not_before, self._clock.now(), longest_s=self._longest_wait_s))
        due = and_(of_any_size, Job.gpus <= gpus)
        held: set[str] = set()
        for priority in self._priorities(due):
            projects = [project for project in self._projects(due, priority) if project not in held]
            for project, limits in self._quotas.of(projects).items():
                # What could never start must not keep the others of its project waiting.
                possible = due if limits.max_running_gpus is None else and_(due, Job.gpus <= limits.max_running_gpus)
                room = self._quotas.lock_room(project)
                oldest = (
                    select(Job.id, Job.gpus)
                    .where(possible, Job.priority == priority, Job.project == project)
                    .order_by(Job.created_at, Job.id)
                    .limit(1)
                    .with_for_update(skip_locked=True)
                )
                for job_id, needed in self._session.execute(oldest):
                    if room is None or needed <= room - self._kept(project, limits, priority, gpus, of_any_size):
                        return job_id
                    held.add(project)
        return None

    def jobs_ahead(
        self, jobs: Sequence[Job], running: Sequence[RunningJob], lines: Lines | None = None
    ) -> dict[str, int]:
        """Of those of the jobs that are queued: how many will start earlier, if nothing else arrives or ends.

        Exact for the first 200 jobs of each project at each priority, behind them in steps of 200. The same for one
        job as for many; the lines of a long queue are counted every few seconds, not at every look.

        Args:
            lines: the queue with these jobs in it; None: it is counted.
        """
        queued = [job for job in jobs if job.state is JobState.QUEUED]
        if not queued:
            return {}
        lines = self.lines() if lines is None else lines
        busy = Counter(job.project for job in running)
        return {job.id: _ahead(job, lines, busy) for job in queued}

    def lines(self) -> Lines:
        """All who wait; of a long queue as they were counted last. Others use the same: not to be changed."""
        memory, now = self._memory, self._clock.monotonic()
        known = memory.lines
        if known is None:  # it was short: that takes no time
            return memory.keep(self._count(), now)
        # One counts; whoever comes meanwhile takes what was good until just now.
        if memory.is_good(now) or not memory.counting.acquire(blocking=not memory.is_good(now, GRACE_S)):
            return known
        try:
            now, known = self._clock.monotonic(), memory.lines
            if known is not None and memory.is_good(now):  # another one has counted meanwhile
                return known
            return memory.keep(self._count(), now)
        finally:
            memory.counting.release()

    def _count(self) -> Lines:
        lines = {(priority, project): Line(length) for priority, project, length in self._session.execute(LINES)}
        for priority, project, created_at, job_id, number in self._session.execute(MARKS):
            # PostgreSQL's second look may see a project that has just come.
            line = lines.setdefault((priority, project), Line(number))
            line.ages.append((created_at, job_id))
            line.numbers.append(number)
        return lines

    def lengths(self) -> dict[tuple[int, str], int]:
        """Queued jobs by priority and project; of a long queue as they were counted last."""
        return {place: line.length for place, line in self.lines().items()}

    def running(self) -> Sequence[RunningJob]:
        """Jobs that workers hold."""
        return [RunningJob(*row) for row in self._session.execute(RUNNING)]

    def usual_duration_s(self) -> float | None:
        """Mean time in which the jobs that succeeded last were trained; None before the first."""
        return self._session.scalar(USUAL_DURATION)

    def seconds_per_image(self, base_model: str) -> list[float]:
        """Of the jobs on a base that succeeded last: GPU seconds over the images of their dataset and their epochs."""
        last = (
            select(Job.gpu_seconds, Job.result, Dataset.report)
            .join(Dataset, Dataset.id == Job.dataset_id)
            .where(Job.state == JobState.SUCCEEDED, Job.base_model == base_model)
            .order_by(Job.created_at.desc())
            .limit(RECENT)
            .execution_options(**EVERYBODY)
        )
        paces = []
        for seconds, result, report in self._session.execute(last):
            images = ((report or {}).get("summary") or {}).get("images")
            epochs = (result or {}).get("epochs")
            if images and epochs:
                paces.append(seconds / (images * epochs))
        return paces

    def _kept(self, project: str, limits: Limits, priority: int, gpus: int, of_any_size: ColumnElement[bool]) -> int:
        """GPUs of the project's room that a worker with so many must leave to a larger job, whose turn comes first."""
        largest = max(self._workers.sizes("gpu", within_s=self._lease_timeout_s).values(), default=0)
        if limits.max_running_gpus is None or largest <= gpus:
            return 0
        possible = and_(of_any_size, Job.gpus <= min(largest, limits.max_running_gpus))
        for place in self._priorities(possible):
            if place < priority:
                break
            line = select(Job.gpus).where(possible, Job.priority == place, Job.project == project)
            needed = self._session.scalar(line.order_by(Job.created_at, Job.id).limit(1))
            if needed is not None:
                return needed if needed > gpus else 0
        return 0

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


def _ahead(job: Job, lines: Lines, running: Mapping[str, int]) -> int:
    """A claim takes the head of the line whose project has the fewest running jobs, of equals the oldest head."""
    busy = Counter(running)
    for (priority, project), line in lines.items():
        if priority > job.priority:
            busy[project] += line.length
    # There is none yet of a job that has just come into a long queue.
    own = lines.get((job.priority, job.project), Line(0)).older_than(_age(job))
    ahead = own + busy.total() - sum(running.values())
    for (priority, project), line in lines.items():
        if priority == job.priority and project != job.project:
            sooner = busy[job.project] + own - busy[project]  # of this line, by having fewer running
            # Of heads that are as old, that of the project whose name comes first.
            age = (job.created_at, AFTER_ALL_IDS if project < job.project else "")
            is_older = 0 <= sooner < line.older_than(age)  # the next one, which has as many
            ahead += min(line.length, max(0, sooner)) + is_older
    return ahead


def _age(job: Job) -> tuple[datetime, str]:
    return job.created_at, job.id
