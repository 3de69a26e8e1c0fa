"""Comparisons: work whose files and figures are kept until it is deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, delete, insert, or_, select, update

from service.shared.db.models import Comparison, ComparisonFile
from service.shared.db.repositories.paging import page
from service.shared.db.repositories.work import WorkRepository
from service.shared.errors import NotFoundError
from service.shared.states import WorkState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.db.repositories.attempts import Lease
    from service.shared.db.repositories.outbox import Outbox
    from service.shared.retry import Retry
    from service.shared.storage import StoredFile

UNFINISHED = (WorkState.QUEUED, WorkState.RUNNING)


class ComparisonRepository(WorkRepository[Comparison]):
    def __init__(self, session: Session, clock: Clock, retry: Retry, max_attempts: int, outbox: Outbox) -> None:
        super().__init__(session, clock, retry, Comparison, max_attempts)
        self._outbox = outbox

    def get(self, comparison_id: str, *, lock: bool = False) -> Comparison:
        """The comparison; with `lock`, nobody else changes it until the transaction ends.

        Raises:
            NotFoundError: if there is none.
        """
        query = select(Comparison).where(Comparison.id == comparison_id)
        comparison = self._session.scalars(query.with_for_update() if lock else query).one_or_none()
        if comparison is None:
            raise NotFoundError(f"There is no comparison {comparison_id!r}.")
        return comparison

    def list(
        self,
        *,
        limit: int,
        descending: bool,
        after: str | None,
        before: str | None,
        states: Sequence[WorkState] = (),
        dataset_id: str | None = None,
        model: str | None = None,
    ) -> tuple[Sequence[Comparison], bool]:
        """One page in order of creation, and whether more follow; `model`: one of the two.

        Raises:
            NotFoundError: if `after` or `before` names no comparison.
        """
        query = select(Comparison)
        if states:
            query = query.where(Comparison.state.in_(states))
        if dataset_id is not None:
            query = query.where(Comparison.dataset_id == dataset_id)
        if model is not None:
            query = query.where(_has(model))
        return page(
            self._session,
            query,
            Comparison,
            limit=limit,
            descending=descending,
            after=after,
            before=before,
            get=self.get,
        )

    def get_file(self, comparison_id: str, name: str) -> ComparisonFile:
        """One file.

        Raises:
            NotFoundError: if the comparison has none of that name.
        """
        file = self._session.get(ComparisonFile, (comparison_id, name))
        if file is None:
            raise NotFoundError(f"Comparison {comparison_id!r} has no such file, or has not succeeded yet.")
        return file

    def succeed(self, work_id: str, epoch: int, **result: Any) -> Comparison:
        """End the work with its result, by column, and the stored `files` about it, by name.

        Raises:
            LeaseLostError: if `epoch` no longer holds the work.
        """
        files: Mapping[str, StoredFile] = result.pop("files")
        ended = super().succeed(work_id, epoch, **result)
        rows = [
            {
                "comparison_id": work_id,
                "name": name,
                "size_bytes": file.size_bytes,
                "sha256": file.sha256,
                "storage_key": file.key,
            }
            for name, file in files.items()
        ]
        self._session.execute(insert(ComparisonFile), rows)
        self._outbox.note_comparison(ended)
        return ended

    def fail(self, work_id: str, epoch: int, error: dict[str, Any]) -> Comparison:
        comparison = super().fail(work_id, epoch, error)
        self._outbox.note_comparison(comparison)
        return comparison

    def reap(self, lease: Lease) -> Comparison:
        comparison = super().reap(lease)
        self._outbox.note_comparison(comparison)
        return comparison

    def fail_unfinished(self, model: str, error: dict[str, Any]) -> None:
        """End every comparison of a model that has not ended; their workers lose them."""
        unfinished = update(Comparison).where(_has(model), Comparison.state.in_(UNFINISHED))
        ended = unfinished.values(error=error, **self._ended(WorkState.FAILED)).returning(Comparison)
        options = {"synchronize_session": False, "populate_existing": True}
        for comparison in self._session.scalars(ended, execution_options=options):
            self._outbox.note_comparison(comparison)

    def unfinished_on(self, dataset_id: str, *, limit: int) -> Sequence[str]:
        """Ids of comparisons that have not ended and need the dataset, oldest first."""
        live = (Comparison.dataset_id == dataset_id, Comparison.state.in_(UNFINISHED))
        query = select(Comparison.id).where(*live).order_by(Comparison.created_at, Comparison.id)
        return self._session.scalars(query.limit(limit)).all()

    def remove(self, comparison_id: str) -> None:
        """Delete the comparison; a worker that is at it loses it."""
        self._session.execute(delete(Comparison).where(Comparison.id == comparison_id))

    def known_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of the storage keys that a comparison names."""
        named = select(ComparisonFile.storage_key).where(ComparisonFile.storage_key.in_(keys))
        return set(self._session.scalars(named))


def _has(model: str) -> ColumnElement[bool]:
    return or_(Comparison.first_model == model, Comparison.second_model == model)
