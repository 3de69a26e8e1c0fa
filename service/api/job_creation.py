"""Creating jobs: requests that come at the same time share a transaction, and each gets its own answer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service.api.batching import Batcher
from service.api.job_views import read_jobs
from service.shared.db.models import Job
from service.shared.errors import ServiceError
from service.usecases.idempotency import Answer, Keyed, answer_all
from service.usecases.jobs import JobSpec, create_jobs
from service.usecases.queue import Outlook, outlook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.api.schemas.jobs import JobRead
    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database, Moment, UnitOfWork

log = structlog.get_logger(__name__)


PATIENCE = text("SET LOCAL lock_timeout = '2s'")
LOCKED = ("55P03", "40P01")  # lock_not_available, deadlock_detected


class JobCreation:
    """The door that new jobs come in by. Belongs to one event loop."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._outlook: tuple[Outlook, Moment] | None = None
        self._batches: dict[str | None, Batcher[Keyed[JobSpec], Answer]] = {}

    async def create(self, request: Keyed[JobSpec], project: str | None = None) -> Answer:
        """The answer to a request, once it is stored. With a `project`, it may use what belongs to that alone.

        Raises:
            ServiceError: as `plan_job`, or for the key as `answer_once`; nothing was stored.
        """
        if project not in self._batches:
            self._batches[project] = Batcher(partial(self._create, self._database.of(project)))
        return await self._batches[project].ask(request)

    def _create(self, database: Database, requests: Sequence[Keyed[JobSpec]]) -> Sequence[Answer | Exception]:
        try:
            return self._create_together(database, requests)
        except Exception as error:
            self._outlook = None  # it has their jobs
            if len(requests) == 1 or _is_away(error):
                raise
            # Nothing was committed. One of them is more than planning could foresee: the others do without it.
            log.exception("jobs_created_one_by_one", jobs=len(requests))
            return [self._create_alone(database, request) for request in requests]

    def _create_together(self, database: Database, requests: Sequence[Keyed[JobSpec]]) -> list[Answer | ServiceError]:
        before = database.moment()
        with database.write() as unit:
            if database.engine.dialect.name == "postgresql":
                # One row that somebody holds must not keep all the others waiting for long.
                unit.session.execute(PATIENCE)
            answers = answer_all(unit, "jobs.create", requests, lambda specs: self._answers(unit, specs, before))
        after = database.moment()
        if self._outlook is not None and after.commits == before.commits + 1:
            # Only these jobs were created meanwhile, and it has them.
            known, moment = self._outlook
            self._outlook = known, replace(moment, commits=after.commits)
        return answers

    def _create_alone(self, database: Database, request: Keyed[JobSpec]) -> Answer | Exception:
        try:
            [answer] = self._create_together(database, [request])
        except Exception as error:  # noqa: BLE001 - it is raised where the request came in
            return error
        return answer

    def _answers(self, unit: UnitOfWork, specs: Sequence[JobSpec], now: Moment) -> list[Answer | ServiceError]:
        created = create_jobs(unit, self._settings, specs)
        jobs = [job for job in created if isinstance(job, Job)]
        known = self._outlook
        if known is None or not now.is_close_to(known[1]):
            known = outlook(unit, self._settings), now
        else:
            known = known[0].with_newest(jobs), known[1]
        self._outlook = known
        reads = iter(read_jobs(unit, self._settings, jobs, known[0]))
        return [each if isinstance(each, ServiceError) else _answer(next(reads)) for each in created]


def _is_away(error: Exception) -> bool:
    """Whether the database is away, for all requests, and not just a row locked."""
    if isinstance(error, OperationalError) and getattr(error.orig, "sqlstate", None) in LOCKED:
        return False
    return isinstance(error, OperationalError | InterfaceError | PoolTimeoutError)


def _answer(read: JobRead) -> Answer:
    return Answer(read.urls.self, read.model_dump(mode="json"))
