"""One dataset from claim to verdict: fetch, extract, validate in a child process, release the jobs that wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from sam3_lora.coco.archive import ArchiveError
from sam3_lora.coco.isolation import validate_isolated
from sam3_lora.coco.report import DatasetReport
from service.shared.errors import LeaseLostError
from service.shared.queue import Task
from service.shared.states import DatasetState
from worker import failures
from worker.archive import unpacked
from worker.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.shared.db.models import Dataset
    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database
    from worker.failures import Failure
    from worker.workspace import Workspace

log = structlog.get_logger(__name__)


class _DrainingError(Exception):
    """The worker shuts down before the verdict."""


class IngestRunner:
    """Checks the datasets that one CPU worker claims, one at a time."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        workspace: Workspace,
        *,
        worker_id: str,
        is_draining: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._workspace = workspace
        self._worker_id = worker_id
        self._is_draining = is_draining

    def run_next(self) -> bool:
        """Claim the oldest unchecked dataset and check it; False if none is due."""
        claimed_at = time.monotonic()
        with self._database.write() as unit:
            dataset = unit.datasets.claim(self._worker_id)
        if dataset is None:
            return False
        with structlog.contextvars.bound_contextvars(dataset_id=dataset.id, epoch=dataset.epoch):
            try:
                with Lease(
                    lambda: self._beat(dataset), self._settings, claimed_at=claimed_at, name=dataset.id
                ) as lease:
                    self._check_and_finish(dataset, lease)
            except LeaseLostError as error:
                log.warning("lease_lost", error=error.message)
        return True

    def _beat(self, dataset: Dataset) -> None:
        with self._database.write() as unit:
            unit.datasets.heartbeat(dataset.id, dataset.epoch)

    def _check_and_finish(self, dataset: Dataset, lease: Lease) -> None:
        try:
            report = self._validate(dataset, lease)
        except LeaseLostError:
            raise
        except _DrainingError:
            lease.insist(lambda: self._drain(dataset))
        except Exception as error:  # the edge of a check: whatever happened is its error, and the worker goes on
            log.exception("check_failed")
            failure = failures.of_exception(error)
            lease.insist(lambda: self._fail(dataset, failure))
        else:
            lease.insist(lambda: self._finish(dataset, report))
            log.info("dataset_checked", status=report.status, errors=report.errors, warnings=report.warnings)

    def _validate(self, dataset: Dataset, lease: Lease) -> DatasetReport:
        def check(*_: int) -> None:
            lease.check()
            if self._is_draining():
                raise _DrainingError

        try:
            with unpacked(dataset, self._storage, self._workspace, on_chunk=check) as root:
                return validate_isolated(root, on_progress=check)
        except ArchiveError as error:
            return DatasetReport.failed(error.issue)

    def _finish(self, dataset: Dataset, report: DatasetReport) -> None:
        valid = report.status == "valid"
        with self._database.write() as unit:
            unit.datasets.finish(
                dataset.id,
                dataset.epoch,
                DatasetState.READY if valid else DatasetState.INVALID,
                report=report.to_dict(),
            )
            for job_id in unit.jobs.release_waiting(dataset.id, valid=valid):
                unit.ring_after_commit(Task.TRAIN, job_id)

    def _fail(self, dataset: Dataset, failure: Failure) -> None:
        with self._database.write() as unit:
            state = DatasetState.PROCESSING if failure.retryable else DatasetState.FAILED
            ended = unit.datasets.finish(dataset.id, dataset.epoch, state, error=failure.to_dict())
            if ended.state is DatasetState.FAILED:
                unit.jobs.release_waiting(dataset.id, valid=False)

    def _drain(self, dataset: Dataset) -> None:
        with self._database.write() as unit:
            unit.datasets.drain(dataset.id, dataset.epoch)
