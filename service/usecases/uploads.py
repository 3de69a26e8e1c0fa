"""How a file arrives in parts, whatever happens in between, and becomes whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.shared.dataset_files import archive_key
from service.shared.db.models import Upload, UploadPart
from service.shared.errors import (
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    StateConflictError,
    StorageError,
    UploadExpiredError,
    UploadIncompleteError,
)
from service.shared.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database, UnitOfWork

MIB = 2**20
PART_BYTES = 64 * MIB
MAX_PARTS = 10_000
MISSING_NAMED = 20


@dataclass(frozen=True)
class UploadSpec:
    """A file as a client announces it; `part_bytes` None leaves it to the service."""

    filename: str
    size_bytes: int
    sha256: str | None
    part_bytes: int | None


def create_upload(unit: UnitOfWork, settings: Settings, spec: UploadSpec) -> Upload:
    """A new upload that waits for its parts.

    Raises:
        PayloadTooLargeError: if the file is larger than an archive may be.
        InvalidRequestError: if it would have too many parts.
        QuotaExceededError: if the project may not store so much more.
    """
    if spec.size_bytes > settings.max_upload_bytes:
        raise PayloadTooLargeError(f"The file is larger than {settings.max_upload_bytes} bytes.")
    least = -(-spec.size_bytes // MAX_PARTS)
    part_bytes = spec.part_bytes or max(PART_BYTES, -(-least // MIB) * MIB)
    if part_bytes < least:
        message = f"makes more than {MAX_PARTS:,} parts: use at least {least}"
        fault = {"pointer": "/part_bytes", "code": "too_many_parts", "message": message}
        raise InvalidRequestError(f"/part_bytes: {message}", errors=[fault])
    unit.quotas.require_bytes(unit.project, spec.size_bytes)
    upload = Upload(
        id=new_id("upload"),
        filename=spec.filename,
        size_bytes=spec.size_bytes,
        part_bytes=part_bytes,
        sha256=spec.sha256,
    )
    return unit.uploads.add(upload)


def part_size(unit: UnitOfWork, upload_id: str, number: int) -> int:
    """Bytes that part `number` of an upload must have.

    Raises:
        NotFoundError: if there is no such upload or part.
        UploadExpiredError, StateConflictError: if the upload takes no more parts.
    """
    upload = unit.uploads.get(upload_id)
    _refuse_closed(unit, upload)
    if not 1 <= number <= upload.part_count:
        raise NotFoundError(f"Upload {upload_id} has parts 1 to {upload.part_count}, no part {number}.")
    return min(upload.part_bytes, upload.size_bytes - (number - 1) * upload.part_bytes)


def store_part(database: Database, storage: Storage, upload_id: str, number: int, path: Path) -> UploadPart:
    """Keep a part, in place of one that is already there.

    Raises:
        NotFoundError, UploadExpiredError, StateConflictError: as `part_size`; the upload may have ended meanwhile.
    """
    stored = storage.put_file(f"uploads/{upload_id}/{number}-{new_id('part')}", path)
    is_kept = False
    try:
        with database.write() as unit:
            upload = unit.uploads.get(upload_id, lock=True)
            _refuse_closed(unit, upload)
            replaced = unit.uploads.put_part(upload, number, stored)
            is_kept = True  # from here on, also if the commit's answer is lost
    finally:
        if not is_kept:
            storage.delete(stored.key)
    if replaced is not None:
        storage.delete(replaced)
    return UploadPart(
        upload_id=upload_id, number=number, size_bytes=stored.size_bytes, sha256=stored.sha256, storage_key=stored.key
    )


def complete_upload(database: Database, storage: Storage, upload_id: str) -> Upload:
    """Make one file of the parts; does nothing if that has been done.

    Raises:
        NotFoundError, UploadExpiredError: if there is no such upload any more.
        UploadIncompleteError: if parts are missing, or were replaced while they were put together.
        InvalidRequestError: if the whole is not what was announced; parts may then be sent anew.
    """
    with database.read() as unit:
        upload, parts = unit.uploads.get(upload_id), unit.uploads.parts(upload_id)
        if upload.completed_at is not None:
            return upload
        _refuse_closed(unit, upload)
    _refuse_incomplete(upload, parts)
    changed = UploadIncompleteError(f"Upload {upload_id} changed while it was completed: complete it again.")
    key = archive_key(new_id("ds"))
    is_kept = False
    try:
        whole = storage.put(key, _content(storage, parts), size_bytes=upload.size_bytes)
        if upload.sha256 not in (None, whole.sha256):
            raise _mismatch(whole.sha256)
        with database.write() as unit:
            upload = unit.uploads.get(upload_id, lock=True)
            if upload.completed_at is None:
                if [part.storage_key for part in unit.uploads.parts(upload_id)] != [part.storage_key for part in parts]:
                    raise changed
                unit.uploads.complete(upload, whole)
                is_kept = True
    except NotFoundError:  # of a part: somebody else has completed the upload, replaced the part or deleted everything
        with database.read() as unit:
            upload = unit.uploads.get(upload_id)
        if upload.completed_at is None:
            raise changed from None
    finally:
        if not is_kept:
            storage.delete(key)
    if is_kept:
        storage.delete_all([part.storage_key for part in parts])
    return upload


def discard_upload(database: Database, storage: Storage, upload_id: str, *, only_expired: bool = False) -> None:
    """Forget an upload and delete its files, except one that a dataset shares.

    Raises:
        NotFoundError: if there is none, or none that has expired.
    """
    with database.write() as unit:
        upload = unit.uploads.get(upload_id, lock=True)
        if only_expired and upload.expires_at > unit.clock.now():
            raise NotFoundError(f"Upload {upload_id} has not expired.")
        keys = [part.storage_key for part in unit.uploads.parts(upload_id)]
        if upload.storage_key is not None and not unit.datasets.known_keys([upload.storage_key]):
            keys.append(upload.storage_key)
        unit.uploads.remove(upload)
    storage.delete_all(keys)


def _refuse_closed(unit: UnitOfWork, upload: Upload) -> None:
    if upload.expires_at <= unit.clock.now():
        raise UploadExpiredError(f"Upload {upload.id} expired at {upload.expires_at.isoformat()}: begin a new one.")
    if upload.completed_at is not None:
        raise StateConflictError(f"Upload {upload.id} is complete: begin a new one for another file.")


def _refuse_incomplete(upload: Upload, parts: Sequence[UploadPart]) -> None:
    present = {part.number for part in parts}
    missing = [number for number in range(1, upload.part_count + 1) if number not in present]
    if missing:
        named = ", ".join(map(str, missing[:MISSING_NAMED])) + (" ..." if len(missing) > MISSING_NAMED else "")
        raise UploadIncompleteError(
            f"{len(missing)} of {upload.part_count} parts of upload {upload.id} are missing: {named}."
        )


def _content(storage: Storage, parts: Sequence[UploadPart]) -> Iterator[bytes]:
    for part in parts:
        digest = hashlib.sha256()
        for chunk in storage.get_range(part.storage_key):
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != part.sha256:
            raise StorageError(f"Part {part.number} was damaged in storage: send it again.")


def _mismatch(found: str) -> InvalidRequestError:
    message = f"the parts together have SHA-256 {found}"
    fault = {"pointer": "/sha256", "code": "sha256_mismatch", "message": message}
    return InvalidRequestError(f"/sha256: {message}", errors=[fault])
