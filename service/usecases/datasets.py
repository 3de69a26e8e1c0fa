"""How an archive becomes a dataset, and when one may be deleted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.shared.dataset_files import archive_key
from service.shared.db.models import Dataset
from service.shared.errors import DatasetInUseError, NotFoundError, invalid
from service.shared.ids import new_id
from service.shared.queue import Task
from service.shared.sources import check_path, check_uri, name_of
from service.shared.states import DatasetState
from service.shared.storage import StoredFile
from service.usecases.idempotency import Answer, answer_once, fingerprint
from service.usecases.quotas import admit_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database, UnitOfWork

MAX_NAME = 200
USERS_NAMED = 10


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset as a client asks for it."""

    name: str
    filename: str
    source: dict[str, str] | None = None
    """As the row keeps it; None: the archive came with the request."""


def store_dataset(
    database: Database,
    storage: Storage,
    spec: DatasetSpec,
    path: Path,
    *,
    idempotency_key: str | None,
    answer: Callable[[Dataset], Answer],
    operation: str = "datasets.create",
) -> Answer:
    """Keep an archive that came with the request and register it; once per operation and idempotency key.

    Raises:
        ServiceError: as `register_dataset`; nothing was kept.
    """
    dataset_id = new_id("ds")
    # Before the transaction: a large file must not hold up other writers.
    archive = storage.put_file(archive_key(dataset_id), path)
    is_kept = False
    try:
        with database.write() as unit:

            def create() -> Answer:
                nonlocal is_kept
                dataset = register_dataset(unit, dataset_id, spec, archive)
                is_kept = dataset.storage_key == archive.key  # from here on, also if the commit's answer is lost
                return answer(dataset)

            request_sha256 = fingerprint({"name": spec.name, "file": archive.sha256})
            return answer_once(unit, operation, idempotency_key, request_sha256, create)
    finally:
        if not is_kept:
            storage.delete(archive.key)


def create_dataset(
    unit: UnitOfWork, settings: Settings, source: dict[str, str], *, name: str | None, sha256: str | None
) -> Dataset:
    """A new dataset of a complete upload, or of what a worker fetches or draws.

    Raises:
        InvalidRequestError: if there is no such upload, it is not complete, or its hash is another.
        SourceRefusedError: if this installation does not fetch from there.
    """
    archive = None
    if source["type"] == "upload":
        archive, filename = _uploaded(unit, source["upload_id"])
        if sha256 not in (None, archive.sha256):
            raise invalid("/sha256", "sha256_mismatch", f"the upload has SHA-256 {archive.sha256}")
    elif source["type"] == "uri":
        check_uri(settings, source["uri"])
        filename = name_of(source["uri"])
    elif source["type"] == "demo":
        filename = "shapes.tar"
    else:
        filename = check_path(settings, source["path"]).name
    filename = filename[:MAX_NAME] or "archive"
    kept = source if sha256 is None else source | {"sha256": sha256}
    return register_dataset(unit, new_id("ds"), DatasetSpec(name or filename, filename, kept), archive)


def register_dataset(unit: UnitOfWork, dataset_id: str, spec: DatasetSpec, archive: StoredFile | None) -> Dataset:
    """A new dataset; a worker fetches its archive, unless it is in storage already, and checks it.

    Where another dataset of the project has the same bytes, both share its archive, and its report if it is `ready`.

    Raises:
        QuotaExceededError: if the project may have no more datasets, or not store so much.
    """
    dataset = Dataset(
        id=dataset_id, name=spec.name, filename=spec.filename, source=spec.source, sha256="", size_bytes=0
    )
    twin, new_bytes = None, 1  # of an archive that is still to be fetched
    if archive is not None:
        twin = unit.datasets.find_twin(archive.sha256, unit.project)
        # What a twin or an upload has kept counts already.
        new_bytes = archive.size_bytes if twin is None and spec.source is None else 0
        dataset.sha256, dataset.size_bytes = archive.sha256, archive.size_bytes
        dataset.storage_key = archive.key if twin is None else twin.storage_key
    admit_dataset(unit, new_bytes)
    unit.datasets.add(dataset)
    if twin is not None and twin.state is DatasetState.READY:
        return unit.datasets.adopt_check(dataset, twin)
    unit.ring_after_commit(Task.INGEST, dataset.id)
    return dataset


def delete_dataset(unit: UnitOfWork, dataset_id: str) -> None:
    """Delete the dataset for clients at once; its archive follows.

    Raises:
        NotFoundError: if there is none.
        DatasetInUseError: if jobs or comparisons that have not ended need it; names them.
    """
    unit.datasets.get(dataset_id, lock=True)
    jobs = unit.jobs.unfinished_on(dataset_id, limit=USERS_NAMED + 1)
    if jobs:
        raise DatasetInUseError(
            f"Dataset {dataset_id} is needed by jobs that have not ended: cancel {_named(jobs)} first, or wait for "
            "their end."
        )
    comparisons = unit.comparisons.unfinished_on(dataset_id, limit=USERS_NAMED + 1)
    if comparisons:
        raise DatasetInUseError(
            f"Dataset {dataset_id} is needed by comparisons that have not ended: delete {_named(comparisons)} first, "
            "or wait for their end."
        )
    unit.datasets.mark_deleted(dataset_id)


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:USERS_NAMED]) + (" and more" if len(ids) > USERS_NAMED else "")


def _uploaded(unit: UnitOfWork, upload_id: str) -> tuple[StoredFile, str]:
    """File and name of a complete upload, which stays until the transaction ends."""
    pointer = "/source/upload_id"
    try:
        upload = unit.uploads.get(upload_id, lock=True)
    except NotFoundError as error:
        raise invalid(pointer, "upload_not_found", error.message) from None
    if upload.storage_key is None or upload.sha256 is None:
        raise invalid(pointer, "upload_incomplete", "complete the upload first")
    if upload.expires_at <= unit.clock.now():
        raise invalid(pointer, "upload_expired", "the upload has expired: begin a new one")
    return StoredFile(upload.storage_key, upload.size_bytes, upload.sha256), upload.filename
