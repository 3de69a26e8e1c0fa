"""Makes every promise come true in the end: announces waiting work again and takes work from lost workers.

Run one per installation (`python -m service.reconciler`); more do no harm. It survives failures of the
database, the broker and storage, and goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from sam3_lora.version import VERSION
from service.shared import checks, pulse
from service.shared import log as logs
from service.shared.clock import Clock, SystemClock
from service.shared.dataset_files import folder_of
from service.shared.db.repositories.attempts import Lease
from service.shared.errors import DatasetInUseError, JobInUseError, NotFoundError, ServiceError, SettingsError
from service.shared.private_files import keep_private
from service.shared.queue import CeleryQueue, Queue, Task
from service.shared.redaction import secrets_of
from service.shared.settings import Settings, load
from service.shared.staging import delete_leftovers
from service.shared.states import DatasetState
from service.shared.storage import Storage
from service.shared.unit_of_work import Database
from service.usecases.actions import delete_job
from service.usecases.datasets import delete_dataset
from service.usecases.stored_files import FOLDERS, delete_orphans, orphans_of, recognises
from service.usecases.uploads import discard_upload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.shared.db.repositories.datasets import DatasetRepository
    from service.shared.db.repositories.jobs import JobRepository
    from service.shared.db.repositories.work import WorkRepository
    from service.shared.unit_of_work import UnitOfWork

log = structlog.get_logger("service.reconciler")

# A claim takes the best job whatever the message says, so a few unfetched messages wake as well as thousands.
MAX_UNFETCHED = 16
SWEEP_INTERVAL_S = 3600.0
SWEEP_END_S = 5.0  # that a sweep has for its last page once the process is to stop
MAX_REMEMBERED = 100_000  # keys of orphans, of about 100 bytes each; those beyond wait for a later sweep
PURGE_ROWS = 10_000  # of one transaction: 0.03 s of SQLite's only writer, 0.2 s of PostgreSQL
PURGE_STEPS = 20  # of one pass, which must not keep the next from its leases
# Whoever waits for an estimate rings for it again by asking again.
ANNOUNCED = tuple(task for task in Task if task is not Task.ESTIMATE)


@dataclass
class LeaseWatch:
    """Judges leases by its own monotonic clock: one is stale when its counter stood still while it was watched."""

    timeout_s: float
    _seen: dict[str, tuple[Lease, float]] = field(default_factory=dict)
    _looked_at_s: float | None = None

    def stale(self, leases: Sequence[Lease], now_s: float) -> list[Lease]:
        """Leases unchanged for the timeout. After a gap in watching, every lease gets its full time again."""
        if self._looked_at_s is None or now_s - self._looked_at_s > self.timeout_s:
            self._seen.clear()
        self._looked_at_s = now_s
        earlier, self._seen = self._seen, {}
        for lease in leases:
            known = earlier.get(lease.id)
            self._seen[lease.id] = known if known is not None and known[0] == lease else (lease, now_s)
        return [lease for lease, since_s in self._seen.values() if now_s - since_s >= self.timeout_s]


class Reconciler:
    def __init__(self, settings: Settings, database: Database, storage: Storage, queue: Queue, clock: Clock) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._queue = queue
        self._clock = clock
        self._jobs = LeaseWatch(settings.lease_timeout_s)
        self._datasets = LeaseWatch(settings.lease_timeout_s)
        self._exports = LeaseWatch(settings.lease_timeout_s)
        self._predictions = LeaseWatch(settings.lease_timeout_s)
        self._comparisons = LeaseWatch(settings.lease_timeout_s)
        self._deliveries = LeaseWatch(settings.lease_timeout_s)
        self._swept_at_s = float("-inf")
        self._orphans: set[str] = set()  # that the last sweep met

    def run(self, stop: threading.Event) -> None:
        """Pass after pass until `stop`; a pass that fails is logged and the next one tries again.

        Beside them, one at a time, the sweeps: a large storage takes longer than leases may go unwatched.
        """
        sweep: threading.Thread | None = None
        pulse.beat(self._settings.pulse_file)
        while not stop.is_set():
            _survive("pass_failed", self.run_once)
            if self._is_sweep_due() and (sweep is None or not sweep.is_alive()):
                self._swept_at_s = self._clock.monotonic()
                work = ("sweep_failed", lambda: self.sweep(stop))
                sweep = threading.Thread(target=_survive, args=work, name="sweep", daemon=True)
                sweep.start()
            pulse.beat(self._settings.pulse_file)
            stop.wait(self._settings.reconcile_interval_s)
        if sweep is not None:
            sweep.join(SWEEP_END_S)

    def run_once(self) -> None:
        """One pass, without a sweep."""
        self._reap_jobs()
        self._reap_datasets()
        self._reap_work(self._exports, lambda unit: unit.exports)
        self._reap_work(self._predictions, lambda unit: unit.predictions)
        self._reap_work(self._comparisons, lambda unit: unit.comparisons)
        self._reap_work(self._deliveries, lambda unit: unit.deliveries)
        self._announce()
        self._expire()
        self._purge_datasets()
        self._purge_jobs()
        self._fold_tallies()

    def sweep(self, stop: threading.Event | None = None) -> None:
        """Forget what is past its retention, and delete files that broken uploads or lost workers left behind.

        A file in storage goes with the second sweep in a row that finds no row for it: with a wrong clock, here or in
        storage, the first can meet one between its end and its row.

        Args:
            stop: ends it early, between two pages of files.
        """
        with self._database.write() as unit:
            unit.idempotency.forget(self._settings.idempotency_retention_s)
            unit.idempotency.forget(self._settings.prediction_retention_s, "predictions.create")
            unit.estimates.forget(self._settings.estimate_retention_s)
            unit.page_sessions.forget_ended()
            unit.deliveries.forget(self._settings.webhook_retention_s)
            unit.workers.forget_silent(self._settings.worker_retention_s)
            forgotten = unit.predictions.forget(self._settings.prediction_retention_s)
        for key in forgotten:
            self._storage.delete(key)
        before = self._clock.now() - timedelta(seconds=self._settings.staging_retention_s)
        delete_leftovers(self._settings.staging_dir, before)
        self._storage.delete_unfinished(before)
        if not recognises(self._database, self._storage):
            log.error("storage_not_recognised", hint="database or storage is another's; else: sam3-service gc --force")
            return
        met: set[str] = set()
        for folder in FOLDERS:
            for page in self._storage.pages(folder, unchanged_since=before):
                if stop is not None and stop.is_set():
                    return
                orphans = orphans_of(self._database, [file.key for file in page])
                met.update(orphans[: MAX_REMEMBERED - len(met)])
                delete_orphans(self._database, self._storage, [key for key in orphans if key in self._orphans])
        self._orphans = met

    def _is_sweep_due(self) -> bool:
        return self._clock.monotonic() - self._swept_at_s >= SWEEP_INTERVAL_S

    def _reap_jobs(self) -> None:
        with self._database.read() as unit:
            leases = unit.attempts.leases()
        for lease in self._jobs.stale(leases, self._clock.monotonic()):
            try:
                with self._database.write() as unit:
                    job = unit.attempts.reap(lease)
            except (ServiceError, SQLAlchemyError) as error:  # renewed, ended or locked: the next pass sees it as it is
                log.info("lease_kept", job_id=lease.id, reason=str(error))
            else:
                log.warning("job_reaped", job_id=job.id, epoch=lease.epoch, state=job.state)

    def _reap_datasets(self) -> None:
        with self._database.read() as unit:
            leases = unit.datasets.leases()
        for lease in self._datasets.stale(leases, self._clock.monotonic()):
            try:
                with self._database.write() as unit:
                    dataset = unit.datasets.reap(lease)
                    if dataset.state is DatasetState.FAILED:
                        unit.jobs.release_waiting(dataset.id, valid=False, error=dataset.error)
            except (ServiceError, SQLAlchemyError) as error:
                log.info("lease_kept", dataset_id=lease.id, reason=str(error))
            else:
                log.warning("dataset_reaped", dataset_id=dataset.id, epoch=lease.epoch, state=dataset.state)

    def _reap_work(self, watch: LeaseWatch, work_of: Callable[[UnitOfWork], WorkRepository[Any]]) -> None:
        with self._database.read() as unit:
            leases = work_of(unit).leases()
        for lease in watch.stale(leases, self._clock.monotonic()):
            try:
                with self._database.write() as unit:
                    row = work_of(unit).reap(lease)
            except (ServiceError, SQLAlchemyError) as error:
                log.info("lease_kept", work_id=lease.id, reason=str(error))
            else:
                log.warning("work_reaped", work_id=row.id, epoch=lease.epoch, state=row.state)

    def _announce(self) -> None:
        for task in ANNOUNCED:
            unfetched = self._queue.depth(task)
            if unfetched is None or unfetched >= MAX_UNFETCHED:
                continue
            with self._database.write() as unit:
                room = MAX_UNFETCHED - unfetched
                for resource_id in _waiting(unit)[task].due(room, republish_s=self._settings.republish_interval_s):
                    unit.ring_after_commit(task, resource_id)

    def _purge_datasets(self) -> None:
        with self._database.read() as unit:
            deleted = unit.datasets.deleted(limit=20)
        for dataset in deleted:
            archive = str(dataset.storage_key)
            with self._database.write() as unit:
                is_shared = unit.datasets.shares_archive(dataset) or unit.uploads.holds(archive)
            if not is_shared:  # and nobody can come to share it any more
                self._storage.delete_prefix(folder_of(archive))
            with self._database.write() as unit:
                unit.datasets.forget_archive(dataset.id)

    def _purge_jobs(self) -> None:
        """Remove deleted jobs: files, then rows, in steps that hold up no writer, and so many of them in a pass."""
        with self._database.read() as unit:
            deleted = unit.jobs.deleted(limit=20)
        steps = PURGE_STEPS
        for job_id in deleted:
            # Its model may live on, with its files.
            delete_orphans(self._database, self._storage, self._storage.list(f"jobs/{job_id}/"))
            is_gone = False
            while not is_gone:
                if steps == 0:
                    return
                steps -= 1
                with self._database.write() as unit:
                    is_gone = unit.jobs.purge(job_id, limit=PURGE_ROWS)

    def _fold_tallies(self) -> None:
        with self._database.read() as unit:
            are_many = unit.tallies.are_many()
        if are_many:
            with self._database.write() as unit:
                unit.tallies.fold()

    def _expire(self) -> None:
        """Delete the jobs, datasets and uploads whose time has passed."""
        jobs_s, datasets_s = self._settings.job_retention_s, self._settings.dataset_retention_s
        with self._database.read() as unit:
            uploads = unit.uploads.expired(limit=20)
            ended = [] if jobs_s is None else unit.jobs.ended(jobs_s, limit=20)
            unused = [] if datasets_s is None else unit.datasets.unused(datasets_s, limit=20)
        for upload_id in uploads:
            with contextlib.suppress(NotFoundError):  # renewed or deleted meanwhile
                discard_upload(self._database, self._storage, upload_id, only_expired=True)
                log.info("upload_expired", upload_id=upload_id)
        for job_id in ended:
            with contextlib.suppress(NotFoundError, JobInUseError), self._database.write() as unit:
                delete_job(unit, job_id)
                log.info("ended_job_deleted", job_id=job_id)
        for dataset_id in unused:
            with contextlib.suppress(NotFoundError, DatasetInUseError), self._database.write() as unit:
                delete_dataset(unit, dataset_id)
                log.info("unused_dataset_deleted", dataset_id=dataset_id)


def _survive(failure: str, work: Callable[[], None]) -> None:
    """Do a pass or a sweep; what may pass by itself, such as the absence of a database, is only logged."""
    try:
        work()
    except (SQLAlchemyError, ServiceError, OSError) as error:
        log.error(failure, error=str(error), kind=type(error).__name__)


def _waiting(unit: UnitOfWork) -> dict[Task, JobRepository | DatasetRepository | WorkRepository[Any]]:
    """Where the work of each task waits."""
    return {
        Task.TRAIN: unit.jobs,
        Task.INGEST: unit.datasets,
        Task.EXPORT: unit.exports,
        Task.PREDICT: unit.predictions,
        Task.COMPARE: unit.comparisons,
        Task.DELIVER: unit.deliveries,
    }


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    keep_private()
    try:
        settings = load()
        logs.configure(settings.log_level, "reconciler", secrets_of(settings, os.environ))
        logs.catch_rest()
        checks.require(settings, checks.database)
    except SettingsError as error:
        sys.stderr.write(f"{error.message}\n")
        raise SystemExit(2) from None
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    clock = SystemClock()
    queue = CeleryQueue(settings, clock)
    database = Database(settings, clock, queue)
    log.info("reconciler_started", version=VERSION)
    Reconciler(settings, database, Storage(settings), queue, clock).run(stop)
    log.info("reconciler_stopping")
    database.close()


if __name__ == "__main__":
    main()
