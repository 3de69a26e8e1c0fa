"""Files that no row needs, and rows that lack their files."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import structlog

from service.shared.db.repositories.stored_files import KINDS, NamedFile, StoredFileRepository
from service.shared.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database, UnitOfWork

log = structlog.get_logger(__name__)

FOLDERS = ("datasets", "uploads", "jobs", "exports", "predictions", "comparisons")
"""Everything that the service keeps in storage."""
BATCH = 500


def orphans_of(database: Database, keys: Sequence[str]) -> list[str]:
    """Those of the storage keys that no row names."""
    found: list[str] = []
    for start in range(0, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        with database.read() as unit:
            known = _owned(unit, batch)
        found += [key for key in batch if key not in known]
    return found


def delete_orphans(database: Database, storage: Storage, keys: Sequence[str]) -> list[str]:
    """Delete those of the files that no row names by now; which they were.

    They must be older than anything takes between a file and its row: then none can come to be named.
    """
    deleted: list[str] = []
    for start in range(0, len(keys), BATCH):
        if orphans := orphans_of(database, keys[start : start + BATCH]):
            storage.delete_all(orphans)
            log.info("orphans_deleted", keys=orphans)
            deleted += orphans
    return deleted


def recognises(database: Database, storage: Storage) -> bool:
    """Whether the database names any file of this storage, or there are none: else one of them is another's."""
    is_empty = True
    for folder in FOLDERS:
        for page in storage.pages(folder):
            keys = [file.key for file in page]
            if len(orphans_of(database, keys)) < len(keys):
                return True
            is_empty = False
    return is_empty


def damaged(database: Database, storage: Storage) -> Iterator[tuple[NamedFile, int | None]]:
    """Files that rows name and storage lacks or has in another size, which is told (None: it has none)."""
    for page in _named(database):
        for folder, files in groupby(page, lambda file: _folder(file.key)):
            sizes = {file.key: file.size_bytes for each in storage.pages(folder) for file in each}
            for file in files:
                if not _fits(file, sizes.get(file.key)) and _is_still_named(database, file):
                    size = _size(storage, file.key)
                    if not _fits(file, size):
                        yield file, size


def _named(database: Database) -> Iterator[list[NamedFile]]:
    """All files that rows name, in pages that are a transaction each."""
    for kind in KINDS:
        after: str | None = ""
        while after is not None:
            with database.read() as unit:
                page = StoredFileRepository(unit.session).list(kind, after=after, limit=BATCH)
            yield page
            after = page[-1].key if len(page) == BATCH else None


def _folder(key: str) -> str:
    return "/".join(key.split("/")[:2])


def _fits(file: NamedFile, size_bytes: int | None) -> bool:
    return size_bytes is not None and file.size_bytes in (None, size_bytes)


def _is_still_named(database: Database, file: NamedFile) -> bool:
    """Whether a row names it by now: those that are withdrawn lose their files."""
    return not orphans_of(database, [file.key])


def _size(storage: Storage, key: str) -> int | None:
    try:
        return storage.size(key)
    except NotFoundError:
        return None


def _owned(unit: UnitOfWork, keys: Sequence[str]) -> set[str | None]:
    owners = (
        unit.datasets,
        unit.uploads,
        unit.checkpoints,
        unit.artifacts,
        unit.models,
        unit.exports,
        unit.predictions,
        unit.comparisons,
    )
    return {key for owner in owners for key in owner.known_keys(keys)}
