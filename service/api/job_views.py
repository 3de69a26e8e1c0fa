"""Jobs as they are answered, and waiting for them to change: one query for all who wait, however many they are."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from service.api.schemas.jobs import JobRead, job_read
from service.usecases.capacity import without_worker
from service.usecases.queue import places

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from service.shared.db.models import Job
    from service.shared.db.repositories.jobs import Version
    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database, UnitOfWork

log = structlog.get_logger(__name__)

POLL_INTERVAL_S = 0.5


@dataclass(frozen=True)
class JobView:
    """A job's representation; `version` changes whenever the job's row does, `etag` whenever the content does."""

    id: str
    version: Version
    content: bytes
    etag: str
    is_terminal: bool


def read_jobs(unit: UnitOfWork, settings: Settings, jobs: Sequence[Job]) -> list[JobRead]:
    """Jobs as clients see them, with their places in the queue."""
    found, stuck = places(unit, settings, jobs), without_worker(unit, settings, jobs)
    return [job_read(job, found.get(job.id), stuck.get(job.id)) for job in jobs]


def read_job(unit: UnitOfWork, settings: Settings, job: Job) -> JobRead:
    """As `read_jobs`, of one."""
    return read_jobs(unit, settings, [job])[0]


def view_jobs(unit: UnitOfWork, settings: Settings, jobs: Sequence[Job]) -> list[JobView]:
    """Representations of jobs."""
    views = []
    for job, read in zip(jobs, read_jobs(unit, settings, jobs), strict=True):
        content = read.model_dump_json().encode()
        version = (job.updated_at, job.last_heartbeat_at, job.last_event_seq)
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        views.append(JobView(job.id, version, content, etag, read.is_terminal))
    return views


class JobWatch:
    """Lets clients wait for jobs to change. Whoever waits holds neither a thread nor a database connection.

    While anyone waits, one statement looks at the versions of all watched jobs twice a second; one that has changed
    is read once for all who wait for it. All methods but `look` belong to the event loop.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._waiting: dict[str, dict[asyncio.Future[JobView | None], Version]] = {}
        self._poller: asyncio.Task[None] | None = None

    def look(self, job_id: str) -> JobView:
        """The job as it is now.

        Raises:
            NotFoundError: if there is none.
        """
        with self._database.read() as unit:
            return view_jobs(unit, self._settings, [unit.jobs.get(job_id)])[0]

    async def until(self, is_enough: Callable[[JobView], bool], view: JobView, timeout_s: float) -> JobView:
        """The first view of the job that is enough, or the last one before the time was over.

        Raises:
            NotFoundError: if the job is deleted meanwhile.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not is_enough(view) and (left_s := deadline - loop.time()) > 0:
            view = await self._next(view, left_s)
        return view

    async def _next(self, view: JobView, timeout_s: float) -> JobView:
        """The job once its row differs from the view, or the same view when the time is over."""
        changed: asyncio.Future[JobView | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(view.id, {})[changed] = view.version
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            async with asyncio.timeout(timeout_s):
                news = await changed
        except TimeoutError:
            return view
        finally:
            others = self._waiting[view.id]
            del others[changed]
            if not others:
                del self._waiting[view.id]
        return await to_thread.run_sync(self.look, view.id) if news is None else news

    async def _poll(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(POLL_INTERVAL_S)
                seen = {job_id: frozenset(waiting.values()) for job_id, waiting in self._waiting.items()}
                try:
                    news = await to_thread.run_sync(self._news, seen)
                except SQLAlchemyError as error:  # the next look may succeed; whoever waits has a limit of time
                    log.warning("watch_failed", error=str(error))
                    continue
                self._tell(news)
        finally:
            self._poller = None

    def _news(self, seen: Mapping[str, AbstractSet[Version]]) -> dict[str, JobView | None]:
        """Views of the jobs whose version is not the only one seen; None for those that are gone."""
        with self._database.read() as unit:
            versions = unit.jobs.versions(list(seen))
            changed = [job_id for job_id, known in seen.items() if known != {versions.get(job_id)}]
            views = view_jobs(unit, self._settings, unit.jobs.get_all(changed)) if changed else []
        return dict.fromkeys(changed) | {view.id: view for view in views}

    def _tell(self, news: Mapping[str, JobView | None]) -> None:
        for job_id, view in news.items():
            for changed, version in self._waiting.get(job_id, {}).items():
                if not changed.done() and (view is None or view.version != version):
                    changed.set_result(view)
