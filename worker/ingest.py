"""One dataset from claim to verdict: fetch, extract, validate and draw in child processes, release waiting jobs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import structlog

from sam3_lora.coco.archive import ArchiveError
from sam3_lora.coco.isolation import draw_isolated, validate_isolated
from sam3_lora.coco.report import DatasetReport
from service.shared.dataset_files import archive_key, preview_key
from service.shared.errors import LeaseLostError, QuotaExceededError
from service.shared.ids import new_id
from service.shared.queue import Task
from service.shared.sources import shown
from service.shared.states import DatasetState
from worker import failures
from worker.archive import unpacked
from worker.failures import SourceError
from worker.sources import fetch_archive
from worker.work import DrainingError, Runner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.shared.db.models import Dataset
    from service.shared.db.repositories.datasets import Pictures
    from service.shared.unit_of_work import UnitOfWork
    from worker.failures import Failure
    from worker.lease import Lease

log = structlog.get_logger(__name__)


class IngestRunner(Runner["Dataset"]):
    """Checks the datasets that one CPU worker claims, one at a time."""

    noun = "dataset"

    def _claim(self, unit: UnitOfWork) -> Dataset | None:
        return unit.datasets.claim(self._worker_id)

    def _renew(self, unit: UnitOfWork, dataset: Dataset) -> None:
        unit.datasets.heartbeat(dataset.id, dataset.epoch)

    def _work(self, dataset: Dataset, lease: Lease) -> None:
        try:
            report, preview = self._inspect(dataset, lease)
        except LeaseLostError:
            raise
        except DrainingError:
            lease.insist(lambda: self._drain(dataset))
        except Exception as error:  # the edge of a check: whatever happened is its error, and the worker goes on
            log.exception("check_failed")
            failure = failures.of_exception(error)
            lease.insist(lambda: self._fail(dataset, failure))
        else:
            lease.insist(lambda: self._finish(dataset, report, preview))
            log.info("dataset_checked", status=report.status, errors=report.errors, warnings=report.warnings)

    def _inspect(self, dataset: Dataset, lease: Lease) -> tuple[DatasetReport, Pictures]:
        def go_on(*_: int) -> None:
            self._check(lease)

        if dataset.storage_key is None and dataset.source is not None:
            dataset = self._fetch(dataset, dataset.source, lease, go_on)
        try:
            with unpacked(dataset, self._storage, self._workspace, on_chunk=go_on, insist=lease.insist) as root:
                report = validate_isolated(root, on_progress=go_on)
                return report, self._draw(dataset, root, go_on)
        except ArchiveError as error:
            return DatasetReport.failed(error.issue), []

    def _fetch(self, dataset: Dataset, source: dict[str, str], lease: Lease, go_on: Callable[[], None]) -> Dataset:
        """The dataset, with the archive that its source names in storage."""
        with self._workspace.attempt(f"source-{dataset.id}") as folder:
            fetch_archive(source, folder / "archive", self._settings, on_chunk=go_on)
            # A folder of its own for each attempt: what another has stored is never overwritten or deleted.
            archive = self._storage.put_file(archive_key(new_id("ds")), folder / "archive", on_chunk=go_on)
        is_kept = False

        def note() -> Dataset:
            nonlocal is_kept
            with self._database.write() as unit:
                fetched = unit.datasets.fetched(dataset, archive, shown(source))
                unit.quotas.require_bytes(fetched.project, 0)  # it counts by now
                is_kept = fetched.storage_key == archive.key  # from here on, also if the commit's answer is lost
                return fetched

        try:
            if source.get("sha256") not in (None, archive.sha256):
                message = f"The archive that arrived has SHA-256 {archive.sha256}."
                hint = "If it is the right one, create the dataset again with that sha256, or with none."
                raise SourceError("sha256_mismatch", message, hint)
            return lease.insist(note)
        except QuotaExceededError as error:
            raise SourceError(error.code, error.message, "Delete datasets that are no longer needed.") from error
        finally:
            if not is_kept:
                self._storage.discard([archive.key])

    def _draw(self, dataset: Dataset, root: Path, go_on: Callable[..., None]) -> Pictures:
        """Pictures of the dataset, in storage beside its archive."""
        drawn: Pictures = []
        with self._workspace.attempt(f"preview-{dataset.id}") as folder:
            for file, picture in draw_isolated(root, folder, on_progress=go_on):
                stored = self._storage.put_file(preview_key(str(dataset.storage_key), len(drawn)), file)
                drawn.append(asdict(picture) | {"sha256": stored.sha256, "bytes": stored.size_bytes})
        return drawn

    def _finish(self, dataset: Dataset, report: DatasetReport, preview: Pictures) -> None:
        valid = report.status == "valid"
        with self._database.write() as unit:
            unit.datasets.finish(
                dataset.id,
                dataset.epoch,
                DatasetState.READY if valid else DatasetState.INVALID,
                report=report.to_dict(),
                preview=preview,
            )
            for job_id in unit.jobs.release_waiting(dataset.id, valid=valid):
                unit.ring_after_commit(Task.TRAIN, job_id)

    def _fail(self, dataset: Dataset, failure: Failure) -> None:
        with self._database.write() as unit:
            state = DatasetState.PROCESSING if failure.retryable else DatasetState.FAILED
            ended = unit.datasets.finish(dataset.id, dataset.epoch, state, error=failure.to_dict())
            if ended.state is DatasetState.FAILED:
                unit.jobs.release_waiting(dataset.id, valid=False, error=ended.error)

    def _drain(self, dataset: Dataset) -> None:
        with self._database.write() as unit:
            unit.datasets.drain(dataset.id, dataset.epoch)
