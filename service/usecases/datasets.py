"""How an uploaded archive becomes a dataset, and when one may be deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.shared.db.models import Dataset
from service.shared.errors import DatasetInUseError
from service.shared.queue import Task

if TYPE_CHECKING:
    from service.shared.storage import StoredFile
    from service.shared.unit_of_work import UnitOfWork


def archive_key(dataset_id: str) -> str:
    """Where a dataset's archive lies in storage."""
    return f"datasets/{dataset_id}/archive"


def register_dataset(unit: UnitOfWork, dataset_id: str, *, name: str, filename: str, archive: StoredFile) -> Dataset:
    """A new dataset whose archive is complete in storage; a worker checks it next."""
    dataset = Dataset(
        id=dataset_id,
        name=name,
        filename=filename,
        sha256=archive.sha256,
        size_bytes=archive.size_bytes,
        storage_key=archive.key,
    )
    unit.datasets.add(dataset)
    unit.ring_after_commit(Task.INGEST, dataset.id)
    return dataset


def delete_dataset(unit: UnitOfWork, dataset_id: str) -> None:
    """Delete the dataset for clients at once; its archive follows.

    Raises:
        NotFoundError: if there is none.
        DatasetInUseError: if a job that has not ended needs it.
    """
    unit.datasets.get(dataset_id, lock=True)
    if unit.jobs.uses_dataset(dataset_id):
        raise DatasetInUseError(f"Dataset {dataset_id} is needed by a job that has not ended: cancel the job first.")
    unit.datasets.mark_deleted(dataset_id)
