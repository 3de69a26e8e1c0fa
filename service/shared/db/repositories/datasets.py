"""Datasets: create, find, list, delete, and the lease under which one is checked."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, bindparam, case, exists, or_, select, update
from sqlalchemy.orm import defer

from service.shared.dataset_files import archive_of
from service.shared.db.models import Comparison, Dataset, Job
from service.shared.db.models.base import EVERYBODY
from service.shared.db.repositories.attempts import Lease
from service.shared.db.repositories.paging import page
from service.shared.db.repositories.times import wait_is_over
from service.shared.errors import LeaseLostError, NotFoundError, StateConflictError
from service.shared.states import DatasetState

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.db.repositories.outbox import Outbox
    from service.shared.retry import RetryPolicy
    from service.shared.storage import StoredFile

Pictures = list[dict[str, Any]]
UNFINISHED = and_(Dataset.state == DatasetState.PROCESSING, Dataset.deleted_at.is_(None))

LOCKED = (
    select(Dataset)
    .where(Dataset.id.in_(bindparam("dataset_ids", expanding=True)), Dataset.deleted_at.is_(None))
    .order_by(Dataset.id)
    .options(defer(Dataset.report), defer(Dataset.preview))  # by far the largest columns, which few look at
    .with_for_update(read=True)
)


class DatasetRepository:
    def __init__(self, session: Session, clock: Clock, retry: RetryPolicy, max_attempts: int, outbox: Outbox) -> None:
        self._session = session
        self._clock = clock
        self._retry = retry
        self._max_attempts = max_attempts
        self._outbox = outbox

    def add(self, dataset: Dataset) -> Dataset:
        """Insert a new dataset, to be checked."""
        now = self._clock.now()
        dataset.state = DatasetState.PROCESSING
        dataset.created_at = dataset.updated_at = dataset.next_publish_at = now
        self._session.add(dataset)
        self._session.flush()
        return dataset

    def get(self, dataset_id: str, *, lock: bool = False) -> Dataset:
        """The dataset; with `lock`, nobody else changes it until the transaction ends.

        Raises:
            NotFoundError: if there is none, or it was deleted.
        """
        query = select(Dataset).where(Dataset.id == dataset_id, Dataset.deleted_at.is_(None))
        dataset = self._session.scalars(query.with_for_update() if lock else query).one_or_none()
        if dataset is None:
            raise NotFoundError(f"There is no dataset {dataset_id!r}.")
        return dataset

    def names(self, dataset_ids: Collection[str]) -> dict[str, str]:
        """Names of those of the datasets that there are."""
        query = select(Dataset.id, Dataset.name).where(Dataset.id.in_(dataset_ids), Dataset.deleted_at.is_(None))
        return {row.id: row.name for row in self._session.execute(query)}

    def find(self, dataset_id: str) -> Dataset | None:
        """The dataset; None also if it was deleted."""
        query = select(Dataset).where(Dataset.id == dataset_id, Dataset.deleted_at.is_(None))
        return self._session.scalars(query).one_or_none()

    def lock_shared(self, dataset_ids: Sequence[str]) -> dict[str, Dataset]:
        """Those of the datasets that there are, by id; until the transaction ends they can be locked so by others, but
        not changed.
        """
        return {dataset.id: dataset for dataset in self._session.scalars(LOCKED, {"dataset_ids": dataset_ids})}

    def list(
        self,
        *,
        limit: int,
        descending: bool = True,
        after: str | None = None,
        before: str | None = None,
        states: Sequence[DatasetState] = (),
    ) -> tuple[Sequence[Dataset], bool]:
        """One page in order of creation, and whether more follow; `before` gives the page that ends there.

        Raises:
            NotFoundError: if `after` or `before` names no dataset.
        """
        query = select(Dataset).where(Dataset.deleted_at.is_(None))
        if states:
            query = query.where(Dataset.state.in_(states))
        return page(
            self._session,
            query,
            Dataset,
            limit=limit,
            descending=descending,
            after=after,
            before=before,
            get=self.get,
        )

    def mark_deleted(self, dataset_id: str) -> None:
        """Hide the dataset for good; the reconciler deletes its archive.

        Raises:
            NotFoundError: if there is none, or it was already deleted.
        """
        now = self._clock.now()
        if not self._update(
            Dataset.id == dataset_id, Dataset.deleted_at.is_(None), deleted_at=now, next_publish_at=None
        ):
            raise NotFoundError(f"There is no dataset {dataset_id!r}.")

    def find_twin(self, sha256: str, project: str) -> Dataset | None:
        """A project's dataset with these bytes, best one that is ready.

        It, and so the archive, stays until the transaction ends. No archive is shared between projects, also by a
        transaction that sees them all: each has its own, counts it, and can delete it.

        Only a holder of this lock may let another dataset share the archive: then the archive of a deleted dataset
        that nobody shares can gain no new user.
        """
        query = select(Dataset).where(
            Dataset.sha256 == sha256,
            Dataset.project == project,
            Dataset.storage_key.is_not(None),
            Dataset.deleted_at.is_(None),
        )
        best_first = (case((Dataset.state == DatasetState.READY, 0), else_=1), Dataset.created_at)
        return self._session.scalars(query.order_by(*best_first).limit(1).with_for_update()).one_or_none()

    def adopt_check(self, dataset: Dataset, twin: Dataset) -> Dataset:
        """Take over what the check of a ready twin has found."""
        found = {"report": twin.report, "preview": twin.preview, **self._ended(DatasetState.READY)}
        adopted = self._update(Dataset.id == dataset.id, UNFINISHED, **found)
        if adopted is None:
            return dataset
        self._outbox.note_dataset(adopted)
        return adopted

    def fetched(self, claimed: Dataset, archive: StoredFile, source: dict[str, str]) -> Dataset:
        """Note that a dataset's archive is in storage now, or that it shares the one of a twin.

        Args:
            claimed: as the claim gave it.
            source: as it is to be kept.

        Raises:
            LeaseLostError: if that `epoch` no longer holds the dataset (also when it was deleted).
        """
        twin = self.find_twin(archive.sha256, claimed.project)
        key = archive.key if twin is None else twin.storage_key
        values = {"sha256": archive.sha256, "size_bytes": archive.size_bytes, "storage_key": key, "source": source}
        return self._fenced(claimed.id, claimed.epoch, **values)

    def claim(self, worker_id: str) -> Dataset | None:
        """Take the oldest unchecked dataset under a new `epoch`; None if nothing is due."""
        now = self._clock.now()
        is_over = wait_is_over(Dataset.not_before, now, longest_s=self._retry.longest_s)
        due = and_(UNFINISHED, Dataset.worker_id.is_(None), is_over)
        dataset_id = self._session.scalar(
            select(Dataset.id)
            .where(due)
            .order_by(Dataset.created_at, Dataset.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if dataset_id is None:
            return None
        taken = {"worker_id": worker_id, "epoch": Dataset.epoch + 1, "hb_seq": 0, "next_publish_at": None}
        return self._update(Dataset.id == dataset_id, due, **taken)

    def heartbeat(self, dataset_id: str, epoch: int) -> None:
        """Renew the lease.

        Raises:
            LeaseLostError: if `epoch` no longer holds the dataset (also when it was deleted).
        """
        self._fenced(dataset_id, epoch, hb_seq=Dataset.hb_seq + 1)

    def finish(
        self,
        dataset_id: str,
        epoch: int,
        outcome: DatasetState,
        *,
        report: dict[str, Any] | None = None,
        preview: Pictures | None = None,
        error: dict[str, Any] | None = None,
    ) -> Dataset:
        """Store the outcome of the check: ready or invalid with a `report` and a `preview`, failed with an `error`.

        Afterwards call `jobs.release_waiting` in the same transaction and ring for the jobs it returns.
        `processing` with an `error` gives the dataset back for another attempt, or fails it when none is left.

        Raises:
            LeaseLostError: if `epoch` no longer holds the dataset (also when it was deleted).
        """
        dataset = self._fenced(dataset_id, epoch, updated_at=self._clock.now())
        if outcome is DatasetState.PROCESSING:
            values = self._after_failure(dataset, error or {})
        else:
            values = {"report": report, "preview": preview, "error": error, **self._ended(outcome)}
        finished = self._fenced(dataset_id, epoch, **values)
        self._outbox.note_dataset(finished)
        return finished

    def drain(self, dataset_id: str, epoch: int) -> None:
        """Give the dataset back unchecked, due at once; does not count as an attempt.

        Raises:
            LeaseLostError: if `epoch` no longer holds the dataset.
        """
        self._fenced(dataset_id, epoch, worker_id=None, next_publish_at=self._clock.now())

    def leases(self) -> Sequence[Lease]:
        """Every held lease."""
        held = and_(UNFINISHED, Dataset.worker_id.is_not(None))
        rows = self._session.execute(select(Dataset.id, Dataset.epoch, Dataset.hb_seq).where(held))
        return [Lease(*row) for row in rows]

    def reap(self, lease: Lease) -> Dataset:
        """Take a dataset away from a worker that has stopped renewing: due again, or failed.

        Raises:
            StateConflictError: if the lease was renewed or ended meanwhile.
        """
        error = {
            "code": "worker_lost",
            "message": "The worker was lost while it checked the dataset.",
            "hint": "Upload the dataset again; if this repeats, the archive may need more memory than the machine has.",
            "retryable": True,
        }
        values = self._after_failure(self.get(lease.id), error)
        held = (Dataset.id == lease.id, Dataset.epoch == lease.epoch, Dataset.hb_seq == lease.hb_seq)
        dataset = self._update(*held, UNFINISHED, Dataset.worker_id.is_not(None), **values)
        if dataset is None:
            raise StateConflictError(f"lease {lease.epoch} of {lease.id} was renewed or has ended")
        self._outbox.note_dataset(dataset)
        return dataset

    def due(self, limit: int, *, republish_s: float) -> Sequence[str]:
        """Ids of unchecked datasets whose announcement is due; each is next due after `republish_s`."""
        now = self._clock.now()
        ids = self._session.scalars(
            select(Dataset.id)
            .where(UNFINISHED, Dataset.worker_id.is_(None), Dataset.next_publish_at <= now)
            .order_by(Dataset.next_publish_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        again = now + timedelta(seconds=republish_s)
        self._session.execute(update(Dataset).where(Dataset.id.in_(ids)).values(next_publish_at=again))
        return ids

    def deleted(self, limit: int) -> Sequence[Dataset]:
        """Deleted datasets whose archives are still kept."""
        query = select(Dataset).where(Dataset.deleted_at.is_not(None), Dataset.storage_key.is_not(None))
        return self._session.scalars(query.limit(limit)).all()

    def shares_archive(self, dataset: Dataset) -> bool:
        """Whether another dataset, of any project, that is not deleted has the same archive."""
        others = (Dataset.storage_key == dataset.storage_key, Dataset.id != dataset.id, Dataset.deleted_at.is_(None))
        return bool(self._session.scalar(select(exists().where(*others)), execution_options=EVERYBODY))

    def known_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of the storage keys that lie in the folder of a dataset's archive, whatever its project."""
        archives = {key: archive_of(key) for key in keys}
        named = select(Dataset.storage_key).where(Dataset.storage_key.in_(set(archives.values())))
        known = set(self._session.scalars(named, execution_options=EVERYBODY))
        return {key for key, archive in archives.items() if archive in known}

    def unused(self, older_than_s: float, *, limit: int) -> Sequence[str]:
        """Ids of checked datasets on which nothing has happened for so long: no check, job or comparison."""
        since = self._clock.now() - timedelta(seconds=older_than_s)
        needs = or_(Job.dataset_id == Dataset.id, Job.validation_dataset_id == Dataset.id)
        of_job = and_(needs, or_(Job.finished_at.is_(None), Job.finished_at > since))
        of_comparison = and_(
            Comparison.dataset_id == Dataset.id, or_(Comparison.finished_at.is_(None), Comparison.finished_at > since)
        )
        query = select(Dataset.id).where(
            Dataset.deleted_at.is_(None),
            Dataset.finished_at <= since,
            ~exists().where(of_job),
            ~exists().where(of_comparison),
        )
        return self._session.scalars(query.order_by(Dataset.finished_at).limit(limit)).all()

    def forget_archive(self, dataset_id: str) -> None:
        """Note that a deleted dataset's archive is gone."""
        self._update(Dataset.id == dataset_id, storage_key=None)

    def _after_failure(self, dataset: Dataset, error: dict[str, Any]) -> dict[str, Any]:
        lost = dataset.lost_attempts + 1
        if lost >= self._max_attempts:
            return {"lost_attempts": lost, "error": error, **self._ended(DatasetState.FAILED)}
        not_before = self._clock.now() + timedelta(seconds=self._retry.delay_s(lost))
        return {"lost_attempts": lost, "worker_id": None, "not_before": not_before, "next_publish_at": not_before}

    def _ended(self, outcome: DatasetState) -> dict[str, Any]:
        return {"state": outcome, "worker_id": None, "finished_at": self._clock.now(), "next_publish_at": None}

    def _fenced(self, dataset_id: str, epoch: int, **values: Any) -> Dataset:
        held = (Dataset.id == dataset_id, Dataset.epoch == epoch, Dataset.worker_id.is_not(None))
        dataset = self._update(*held, UNFINISHED, **values)
        if dataset is None:
            raise LeaseLostError(f"lease {epoch} of {dataset_id} is no longer held")
        return dataset

    def _update(self, *conditions: ColumnElement[bool], **values: Any) -> Dataset | None:
        statement = update(Dataset).where(*conditions).values(**values).returning(Dataset)
        options = {"synchronize_session": False, "populate_existing": True}
        return self._session.scalars(statement, execution_options=options).one_or_none()
