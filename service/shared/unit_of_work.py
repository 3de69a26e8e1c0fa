"""Transactions: the one place that commits, and rings the workers once that has succeeded."""

from __future__ import annotations

import copy
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

from sqlalchemy import event
from sqlalchemy.orm import LoaderCriteriaOption, ORMExecuteState, Session, UOWTransaction, with_loader_criteria

from service.shared.clock import SystemClock
from service.shared.db.migrate import open_engine
from service.shared.db.models import Export, OfProject, Prediction, WebhookDelivery
from service.shared.db.models.base import ALL_PROJECTS, DEFAULT_PROJECT, PROJECT
from service.shared.db.repositories.api_keys import ApiKeyRepository
from service.shared.db.repositories.artifacts import ArtifactRepository
from service.shared.db.repositories.attempts import AttemptRepository
from service.shared.db.repositories.census import CensusRepository
from service.shared.db.repositories.checkpoints import CheckpointRepository
from service.shared.db.repositories.comparisons import ComparisonRepository
from service.shared.db.repositories.datasets import DatasetRepository
from service.shared.db.repositories.estimates import EstimateRepository
from service.shared.db.repositories.events import EventRepository
from service.shared.db.repositories.idempotency import IdempotencyRepository
from service.shared.db.repositories.inserts import assign_project
from service.shared.db.repositories.jobs import JobRepository
from service.shared.db.repositories.logs import LogRepository
from service.shared.db.repositories.metrics import MetricRepository
from service.shared.db.repositories.models import ExportRepository, ModelRepository
from service.shared.db.repositories.outbox import Outbox
from service.shared.db.repositories.page_sessions import PageSessionRepository
from service.shared.db.repositories.predictions import PredictionRepository
from service.shared.db.repositories.queue import QueueMemory, QueueRepository
from service.shared.db.repositories.quotas import Limits, QuotaMemory, QuotaRepository
from service.shared.db.repositories.sweeps import SweepRepository
from service.shared.db.repositories.tallies import TallyRepository
from service.shared.db.repositories.uploads import UploadRepository
from service.shared.db.repositories.usage import UsageRepository
from service.shared.db.repositories.webhooks import MAX_TRIES, DeliveryRepository, RetrySchedule, WebhookRepository
from service.shared.db.repositories.workers import WorkerRepository
from service.shared.queue import CeleryQueue, Task
from service.shared.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from service.shared.clock import Clock
    from service.shared.queue import Queue
    from service.shared.settings import Settings


CLOSE_S = 1.0


@dataclass(frozen=True)
class Memory:
    """What a process remembers from one transaction to the next."""

    queue: QueueMemory = field(default_factory=QueueMemory)
    quotas: QuotaMemory = field(default_factory=QuotaMemory)


class UnitOfWork:
    """Every repository, on one transaction."""

    def __init__(self, session: Session, clock: Clock, settings: Settings, memory: Memory) -> None:
        project = session.info[PROJECT]
        retry = RetryPolicy(settings.retry_backoff_s, settings.retry_backoff_max_s)
        self.session = session
        self.clock = clock
        self.project = project or DEFAULT_PROJECT
        """Of what is added and names none."""
        self.outbox = Outbox(session, clock)
        self.tallies = TallyRepository(session)
        self.census = CensusRepository(session, clock)
        self.events = EventRepository(session, clock)
        self.usage = UsageRepository(session, clock)
        self.quotas = QuotaRepository(session, clock, self.usage, Limits.default(settings), memory.quotas)
        self.workers = WorkerRepository(session, clock)
        self.queue = QueueRepository(
            session, clock, memory.queue, self.quotas, self.workers, settings.lease_timeout_s, retry.longest_s
        )
        self.jobs = JobRepository(session, clock, self.events, self.queue, self.outbox, self.tallies, self.usage)
        self.attempts = AttemptRepository(session, clock, self.jobs, retry, self.tallies, self.usage)
        self.datasets = DatasetRepository(session, clock, retry, settings.ingest_max_attempts, self.outbox)
        self.uploads = UploadRepository(session, clock, settings.upload_retention_s)
        self.metrics = MetricRepository(session, clock)
        self.logs = LogRepository(session, settings.max_log_bytes)
        self.checkpoints = CheckpointRepository(session, clock, self.outbox)
        self.artifacts = ArtifactRepository(session, clock)
        self.models = ModelRepository(session, clock)
        self.exports = ExportRepository(session, clock, retry, Export, settings.work_max_attempts)
        self.predictions = PredictionRepository(session, clock, retry, Prediction, settings.work_max_attempts)
        self.comparisons = ComparisonRepository(session, clock, retry, settings.work_max_attempts, self.outbox)
        self.sweeps = SweepRepository(session, clock)
        self.webhooks = WebhookRepository(session, clock)
        self.deliveries = DeliveryRepository(session, clock, RetrySchedule(), WebhookDelivery, MAX_TRIES)
        self.estimates = EstimateRepository(session, clock)
        self.idempotency = IdempotencyRepository(session, clock, project or "")
        self.api_keys = ApiKeyRepository(session, clock, project)
        self.page_sessions = PageSessionRepository(session, clock)
        self.rings: dict[Task, list[str]] = {}

    def ring_after_commit(self, task: Task, resource_id: str) -> None:
        """Tell the workers of a task once the transaction has committed."""
        self.rings.setdefault(task, []).append(resource_id)

    def conclude(self) -> None:
        """Write the counts of what has happened, and the webhooks about it; the last statements of a transaction."""
        self.tallies.store()
        if delivery_id := self.outbox.store():
            self.ring_after_commit(Task.DELIVER, delivery_id)


@dataclass(frozen=True)
class Moment:
    """When the database was looked at: by this process's clock, and by how much this process had written before."""

    monotonic_s: float
    commits: int

    def is_close_to(self, earlier: Moment) -> bool:
        """Whether what others may have written since does not matter yet: own writes are always seen at once."""
        return self.commits == earlier.commits and self.monotonic_s - earlier.monotonic_s < CLOSE_S


class _ProjectSession(Session):
    """Keeps to the project in its `info`: whatever it selects, changes or adds is of that; without one, of any."""


@event.listens_for(_ProjectSession, "before_flush")
def _assign(session: Session, _context: UOWTransaction, _instances: object) -> None:
    for row in session.new:
        assign_project(session, row)


@event.listens_for(_ProjectSession, "do_orm_execute")
def _restrict(state: ORMExecuteState) -> None:
    project = state.session.info[PROJECT]
    if project is not None and not (state.is_insert or state.execution_options.get(ALL_PROJECTS)):
        state.statement = state.statement.options(_only(project))


@lru_cache(1024)
def _only(project: str) -> LoaderCriteriaOption:
    return with_loader_criteria(OfProject, lambda row: row.project == project, include_aliases=True)


class _Counter:
    def __init__(self) -> None:
        self.value = 0
        self._lock = Lock()

    def add_one(self) -> None:
        with self._lock:
            self.value += 1


@contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    """The database of an installation for a command, which closes it."""
    clock = SystemClock()
    with closing(CeleryQueue(settings, clock)) as queue, closing(Database(settings, clock, queue)) as database:
        yield database


class Database:
    """Opens units of work. Thread-safe; open one per process, after any fork.

    Rows stay readable after their unit of work has ended.
    """

    project: str | None = None
    """The only project whose rows its units of work see; None: all."""

    def __init__(self, settings: Settings, clock: Clock, queue: Queue) -> None:
        self._settings = settings
        self._clock = clock
        self._queue = queue
        self.engine = open_engine(settings)
        self._reading = self.engine.execution_options(read_only=True)
        self._memory = Memory()
        self._commits = _Counter()

    @contextmanager
    def write(self) -> Iterator[UnitOfWork]:
        """A transaction that commits on a clean exit and then rings; rolls back on any exception."""
        with self._session(self.engine) as session:
            unit = UnitOfWork(session, self._clock, self._settings, self._memory)
            with session.begin():
                yield unit
                unit.conclude()
        self._commits.add_one()
        self._memory.quotas.forget(unit.quotas.changed)
        for task, resource_ids in unit.rings.items():
            self._queue.ring(task, *resource_ids)

    @contextmanager
    def read(self) -> Iterator[UnitOfWork]:
        """A transaction that only reads, and waits for no writer."""
        with self._session(self._reading) as session, session.begin():
            yield UnitOfWork(session, self._clock, self._settings, self._memory)

    def _session(self, engine: Engine) -> Session:
        return _ProjectSession(engine, expire_on_commit=False, info={PROJECT: self.project})

    def of(self, project: str | None) -> Database:
        """The same database, whose units of work see the rows of a project alone."""
        own = copy.copy(self)
        own.project = project
        return own

    def moment(self) -> Moment:
        """Now; take it before what is read then."""
        return Moment(self._clock.monotonic(), self._commits.value)

    def close(self) -> None:
        self.engine.dispose()
