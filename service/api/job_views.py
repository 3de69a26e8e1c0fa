"""Jobs as they are answered, to those who ask now and those who wait for news: one query for all, however many."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from service.api.batching import Batcher
from service.api.schemas.jobs import JobRead, job_read
from service.shared.db.repositories.jobs import unknown_job
from service.shared.states import JobState
from service.usecases.queue import places

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from service.shared.db.models import Job
    from service.shared.db.repositories.jobs import Version
    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database, Moment, UnitOfWork
    from service.usecases.queue import Outlook

log = structlog.get_logger(__name__)

POLL_INTERVAL_S = 0.5
MAX_KEPT_BYTES = 16 * 2**20  # of views, of a few kB each


@dataclass(frozen=True)
class JobView:
    """A job's representation; `version` changes whenever the job's row does, `etag` whenever the content does.

    The end of the tag, `own`, tells what PATCH can change: a change of anything else is no reason to refuse one.
    """

    id: str
    version: Version
    content: bytes
    etag: str
    own: str
    project: str
    is_terminal: bool
    waits: bool


@dataclass(frozen=True)
class _Kept:
    """A view, and when it was made: what it says of the queue depends on other jobs and on workers as well."""

    view: JobView
    moment: Moment


def read_jobs(unit: UnitOfWork, settings: Settings, jobs: Sequence[Job], known: Outlook | None = None) -> list[JobRead]:
    """Jobs as clients see them, with their places in the queue; `known` as in `places`."""
    found = places(unit, settings, jobs, known)
    return [job_read(job, found.get(job.id)) for job in jobs]


def read_job(unit: UnitOfWork, settings: Settings, job: Job) -> JobRead:
    """As `read_jobs`, of one."""
    return read_jobs(unit, settings, [job])[0]


def view_jobs(unit: UnitOfWork, settings: Settings, jobs: Sequence[Job]) -> list[JobView]:
    """Representations of jobs."""
    views = []
    for job, read in zip(jobs, read_jobs(unit, settings, jobs), strict=True):
        content = read.model_dump_json().encode()
        version = (job.updated_at, job.last_heartbeat_at, job.last_event_seq)
        patchable = [job.name, job.tags, job.labels, job.priority]
        own = hashlib.sha256(json.dumps(patchable, sort_keys=True).encode()).hexdigest()[:16]
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}.{own}"'
        waits = job.state in (JobState.QUEUED, JobState.VALIDATING_FILES)
        views.append(JobView(job.id, version, content, etag, own, job.project, read.is_terminal, waits))
    return views


class JobWatch:
    """The present view of a job, and waiting for it to change, which holds neither a thread nor a connection.

    Those who ask at the same time are answered by one look at the versions of their jobs; a view is made anew only if
    the version is another. While anyone waits, one statement looks at all watched jobs twice a second. All methods
    belong to the event loop.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._kept: dict[str, _Kept] = {}
        self._kept_bytes = 0
        self._looks = Batcher(self._look)
        self._waiting: dict[str, dict[asyncio.Future[JobView | None], Version]] = {}
        self._poller: asyncio.Task[None] | None = None
        self.closed = False

    def close(self) -> None:
        """Answer all who wait with what there is now, and whoever comes later at once."""
        self.closed = True
        for waiting in self._waiting.values():
            for changed in waiting:
                if not changed.done():
                    changed.set_result(None)

    async def look(self, job_id: str, project: str | None = None) -> JobView:
        """The job as it is now; its place in the queue as it was within the last second.

        Raises:
            NotFoundError: if there is none, or none of the project, where one is given.
        """
        view = await self._looks.ask(job_id)
        if project not in (None, view.project):
            raise unknown_job(job_id)
        return view

    def _look(self, job_ids: Sequence[str]) -> list[JobView | Exception]:
        moment = self._database.moment()
        with self._database.read() as unit:
            versions = unit.jobs.versions(set(job_ids))
            known = {job_id: self._known(job_id, version, moment) for job_id, version in versions.items()}
            changed = [job_id for job_id, view in known.items() if view is None]
            made = view_jobs(unit, self._settings, unit.jobs.get_all(changed)) if changed else []
        for view in made:
            self._keep(_Kept(view, moment))
        found = known | {view.id: view for view in made}
        return [found.get(job_id) or unknown_job(job_id) for job_id in job_ids]

    def _keep(self, kept: _Kept) -> None:
        """Remember a view, and forget the oldest ones beyond what all may take."""
        self._forget(kept.view.id)
        self._kept[kept.view.id] = kept
        self._kept_bytes += len(kept.view.content)
        while self._kept_bytes > MAX_KEPT_BYTES:
            self._forget(next(iter(self._kept)))

    def _forget(self, job_id: str) -> None:
        if (kept := self._kept.pop(job_id, None)) is not None:
            self._kept_bytes -= len(kept.view.content)

    def _known(self, job_id: str, version: Version, moment: Moment) -> JobView | None:
        """The view that is kept of this version, if its place in the queue can hardly have changed."""
        kept = self._kept.get(job_id)
        if kept is None or kept.view.version != version or (kept.view.waits and not moment.is_close_to(kept.moment)):
            return None
        return kept.view

    async def until(self, is_enough: Callable[[JobView], bool], view: JobView, timeout_s: float) -> JobView:
        """The first view of the job that is enough, or the last one before the time was over.

        Raises:
            NotFoundError: if the job is deleted meanwhile.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not is_enough(view) and not self.closed and (left_s := deadline - loop.time()) > 0:
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
            news = None  # its place in the queue may have changed without the row
        finally:
            others = self._waiting[view.id]
            del others[changed]
            if not others:
                del self._waiting[view.id]
        return await self.look(view.id) if news is None else news

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
