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
    fault,
    invalid,
)
from service.shared.ids import new_id
from service.usecases.datasets import DatasetSpec, register_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from service.shared.settings import Settings
    from service.shared.storage import Storage, StoredFile
    from service.shared.unit_of_work import Database, UnitOfWork

MIB = 2**20
PART_BYTES = 64 * MIB
MAX_PARTS = 10_000
MISSING_NAMED = 20
TRIES = 3
"""Times that a client may send each byte of an upload whose parts have no numbers: after a broken connection it cannot
tell whether a part has arrived."""


@dataclass(frozen=True)
class UploadSpec:
    """A file as a client announces it; `part_bytes` None leaves it to the service. `purpose`: see `Upload`."""

    filename: str
    size_bytes: int
    sha256: str | None = None
    part_bytes: int | None = None
    purpose: str | None = None


@dataclass(frozen=True)
class Assembly:
    """What an upload with a purpose is made of."""

    part_ids: Sequence[str]
    """In the order of the file."""
    md5: str | None = None
    """Of the whole file, in hexadecimal digits; checked."""


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
        raise invalid("/part_bytes", "too_many_parts", f"makes more than {MAX_PARTS:,} parts: use at least {least}")
    unit.quotas.require_bytes(unit.project, spec.size_bytes)
    upload = Upload(
        id=new_id("upload"),
        filename=spec.filename,
        size_bytes=spec.size_bytes,
        part_bytes=part_bytes,
        sha256=spec.sha256,
        purpose=spec.purpose,
    )
    return unit.uploads.add(upload)


def part_size(unit: UnitOfWork, upload_id: str, number: int) -> int:
    """Bytes that part `number` of an upload must have.

    Raises:
        NotFoundError: if there is no such upload or part.
        UploadExpiredError, StateConflictError: if the upload takes no more parts, or none with numbers.
    """
    upload = unit.uploads.get(upload_id)
    _refuse_closed(unit, upload)
    if upload.purpose is not None:
        raise StateConflictError(
            f"Parts of upload {upload_id} have no numbers: POST them to /uploads/{upload_id}/parts."
        )
    if not 1 <= number <= upload.part_count:
        raise NotFoundError(f"Upload {upload_id} has parts 1 to {upload.part_count}, no part {number}.")
    return min(upload.part_bytes, upload.size_bytes - (number - 1) * upload.part_bytes)


def largest_part(unit: UnitOfWork, upload_id: str) -> int:
    """Bytes that a part of an upload with a purpose may have.

    Raises:
        NotFoundError: if there is no such upload.
        UploadExpiredError, StateConflictError: if the upload takes no more parts, or only those with numbers.
    """
    upload = unit.uploads.get(upload_id)
    _refuse_closed(unit, upload)
    _refuse_numbered(upload)
    return upload.part_bytes


def store_part(database: Database, storage: Storage, upload_id: str, number: int | None, path: Path) -> UploadPart:
    """Keep a part, in place of one that is already there; one without a `number` comes beside the others.

    Raises:
        NotFoundError, UploadExpiredError, StateConflictError: as `part_size`; the upload may have ended meanwhile.
        InvalidRequestError: if there would be too many parts, or too much in them.
    """
    name = new_id("part") if number is None else f"{number}-{new_id('part')}"
    stored = storage.put_file(f"uploads/{upload_id}/{name}", path)
    is_kept = False
    try:
        with database.write() as unit:
            upload = unit.uploads.get(upload_id, lock=True)
            _refuse_closed(unit, upload)
            if number is None:
                number = _next_number(unit, upload, stored.size_bytes)
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


def complete_upload(database: Database, storage: Storage, upload_id: str, assembly: Assembly | None = None) -> Upload:
    """Make one file of the parts, and of one with a purpose a dataset as well; does nothing if that has been done.

    Args:
        assembly: of an upload with a purpose, else None.

    Raises:
        NotFoundError, UploadExpiredError: if there is no such upload any more.
        UploadIncompleteError: if parts are missing, or were replaced while they were put together.
        InvalidRequestError: if the whole is not what was announced; parts may then be sent anew. Or if the assembly is
            missing, unwanted, or names a part that is not there.
    """
    with database.read() as unit:
        upload, parts = unit.uploads.get(upload_id), unit.uploads.parts(upload_id)
        _check_assembly(upload, assembly)
        if upload.completed_at is not None:
            return upload
        _refuse_closed(unit, upload)
    if assembly is None:
        _refuse_incomplete(upload, parts)
    else:
        parts = _assembled(upload, parts, assembly)
    changed = UploadIncompleteError(f"Upload {upload_id} changed while it was completed: complete it again.")
    key = archive_key(new_id("ds"))
    kept: set[str] = set()
    is_kept = False
    try:
        whole = _store_whole(storage, key, upload, parts, None if assembly is None else assembly.md5)
        with database.write() as unit:
            upload = unit.uploads.get(upload_id, lock=True)
            if upload.completed_at is None:
                kept = {part.storage_key for part in unit.uploads.parts(upload_id)}
                if not {part.storage_key for part in parts} <= kept:
                    raise changed
                unit.uploads.complete(upload, whole)
                if upload.purpose is not None:
                    source = {"type": "upload", "upload_id": upload_id}
                    spec = DatasetSpec(upload.filename, upload.filename, source)
                    upload.dataset_id = register_dataset(unit, new_id("ds"), spec, whole).id
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
        storage.delete_all(sorted(kept))
    return upload


def discard_upload(
    database: Database, storage: Storage, upload_id: str, *, only_expired: bool = False, only_pending: bool = False
) -> Upload:
    """Forget an upload and delete its files, except one that a dataset shares; what it was.

    Raises:
        NotFoundError: if there is none, or none that has expired.
        StateConflictError: with `only_pending`, if it is complete, or has no purpose.
    """
    with database.write() as unit:
        upload = unit.uploads.get(upload_id, lock=True)
        if only_expired and upload.expires_at > unit.clock.now():
            raise NotFoundError(f"Upload {upload_id} has not expired.")
        if only_pending:
            _refuse_closed(unit, upload)
            _refuse_numbered(upload)
        keys = [part.storage_key for part in unit.uploads.parts(upload_id)]
        if upload.storage_key is not None and not unit.datasets.known_keys([upload.storage_key]):
            keys.append(upload.storage_key)
        unit.uploads.remove(upload)
    storage.delete_all(keys)
    return upload


def _refuse_numbered(upload: Upload) -> None:
    """Raise StateConflictError if the upload has no purpose: its parts have numbers."""
    if upload.purpose is None:
        url = f"/uploads/{upload.id}"
        raise StateConflictError(f"Upload {upload.id} has numbered parts: PUT them to {url}/parts/1 and so on.")


def _refuse_closed(unit: UnitOfWork, upload: Upload) -> None:
    if upload.expires_at <= unit.clock.now():
        raise UploadExpiredError(f"Upload {upload.id} expired at {upload.expires_at.isoformat()}: begin a new one.")
    if upload.completed_at is not None:
        raise StateConflictError(f"Upload {upload.id} is complete: begin a new one for another file.")


def _next_number(unit: UnitOfWork, upload: Upload, size_bytes: int) -> int:
    """The number of one more part of a locked upload with a purpose."""
    _refuse_numbered(upload)
    last, there_bytes = unit.uploads.extent(upload.id)
    if last >= MAX_PARTS:
        raise invalid("", "too_many_parts", f"an upload has at most {MAX_PARTS:,} parts: begin a new one")
    if there_bytes + size_bytes > TRIES * upload.size_bytes:
        message = f"with this part there would be more than {TRIES} times the {upload.size_bytes} bytes announced"
        raise invalid("", "too_many_bytes", message)
    return last + 1


def _check_assembly(upload: Upload, assembly: Assembly | None) -> None:
    if upload.purpose is None and assembly is not None:
        raise invalid("/part_ids", "extra_forbidden", "parts of this upload have numbers: send no body")
    if upload.purpose is not None and assembly is None:
        raise invalid("/part_ids", "missing", "name the parts, in the order of the file")


def _refuse_incomplete(upload: Upload, parts: Sequence[UploadPart]) -> None:
    present = {part.number for part in parts}
    missing = [number for number in range(1, upload.part_count + 1) if number not in present]
    if missing:
        named = ", ".join(map(str, missing[:MISSING_NAMED])) + (" ..." if len(missing) > MISSING_NAMED else "")
        raise UploadIncompleteError(
            f"{len(missing)} of {upload.part_count} parts of upload {upload.id} are missing: {named}."
        )


def _assembled(upload: Upload, parts: Sequence[UploadPart], assembly: Assembly) -> Sequence[UploadPart]:
    """The parts that are named, as they are."""
    by_id = {part.id: part for part in parts}
    faults = [
        fault(f"/part_ids/{index}", "part_not_found", f"there is no part {part_id!r}")
        for index, part_id in enumerate(assembly.part_ids)
        if part_id not in by_id
    ]
    if faults:
        raise InvalidRequestError(f"{len(faults)} of the parts are not there.", errors=faults[:MISSING_NAMED])
    named = [by_id[part_id] for part_id in assembly.part_ids]
    size_bytes = sum(part.size_bytes for part in named)
    if size_bytes != upload.size_bytes:
        message = f"the parts have {size_bytes} bytes together, but {upload.size_bytes} were announced"
        raise invalid("/part_ids", "wrong_length", message)
    return named


def _store_whole(
    storage: Storage, key: str, upload: Upload, parts: Sequence[UploadPart], expected_md5: str | None
) -> StoredFile:
    md5 = None if expected_md5 is None else hashlib.md5(usedforsecurity=False)
    whole = storage.put(key, _content(storage, parts, md5), size_bytes=upload.size_bytes)
    if upload.sha256 not in (None, whole.sha256):
        raise invalid("/sha256", "sha256_mismatch", f"the parts together have SHA-256 {whole.sha256}")
    if md5 is not None and md5.hexdigest() != expected_md5:
        raise invalid("/md5", "md5_mismatch", f"the parts together have MD5 {md5.hexdigest()}")
    return whole


def _content(storage: Storage, parts: Sequence[UploadPart], md5: hashlib._Hash | None) -> Iterator[bytes]:
    for part in parts:
        digest = hashlib.sha256()
        for chunk in storage.get_range(part.storage_key):
            digest.update(chunk)
            if md5 is not None:
                md5.update(chunk)
            yield chunk
        if digest.hexdigest() != part.sha256:
            raise StorageError(f"Part {part.number} was damaged in storage: send it again.")
