"""Creating jobs: requests that come at the same time share a transaction, and each gets its own answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service.api.batching import Batcher
from service.api.job_views import read_jobs
from service.shared.db.models import Job
from service.shared.errors import ServiceError
from service.usecases.idempotency import Answer, Keyed, answer_all
from service.usecases.jobs import JobSpec, create_jobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.api.schemas.jobs import JobRead
    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database, UnitOfWork

log = structlog.get_logger(__name__)


class JobCreation:
    """The door that new jobs come in by. Belongs to one event loop."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._batches: Batcher[Keyed[JobSpec], Answer] = Batcher(self._create)

    async def create(self, request: Keyed[JobSpec]) -> Answer:
        """The answer to a request, once it is stored.

        Raises:
            ServiceError: as `plan_job`, or for the key as `answer_once`; nothing was stored.
        """
        return await self._batches.ask(request)

    def _create(self, requests: Sequence[Keyed[JobSpec]]) -> Sequence[Answer | Exception]:
        try:
            return self._create_together(requests)
        except (OperationalError, InterfaceError, PoolTimeoutError):
            raise  # the database is away for all of them
        except Exception:
            if len(requests) == 1:
                raise
            # Nothing was committed. One of them is more than planning could foresee: the others do without it.
            log.exception("jobs_created_one_by_one", jobs=len(requests))
            return [self._create_alone(request) for request in requests]

    def _create_together(self, requests: Sequence[Keyed[JobSpec]]) -> list[Answer | ServiceError]:
        with self._database.write() as unit:
            return answer_all(unit, "jobs.create", requests, lambda specs: self._answers(unit, specs))

    def _create_alone(self, request: Keyed[JobSpec]) -> Answer | Exception:
        try:
            [answer] = self._create_together([request])
        except Exception as error:  # noqa: BLE001 - it is raised where the request came in
            return error
        return answer

    def _answers(self, unit: UnitOfWork, specs: Sequence[JobSpec]) -> list[Answer | ServiceError]:
        created = create_jobs(unit, self._settings, specs)
        reads = iter(read_jobs(unit, self._settings, [job for job in created if isinstance(job, Job)]))
        return [each if isinstance(each, ServiceError) else _answer(next(reads)) for each in created]


def _answer(read: JobRead) -> Answer:
    return Answer(read.urls.self, read.model_dump(mode="json"))
