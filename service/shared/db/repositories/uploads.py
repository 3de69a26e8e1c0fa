"""Uploads in parts: announce, add parts, complete, forget."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, exists, func, select

from service.shared.db.models import Upload, UploadPart
from service.shared.db.models.base import EVERYBODY
from service.shared.db.repositories.paging import page
from service.shared.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.storage import StoredFile


class UploadRepository:
    def __init__(self, session: Session, clock: Clock, retention_s: float) -> None:
        self._session = session
        self._clock = clock
        self._retention = timedelta(seconds=retention_s)

    def add(self, upload: Upload) -> Upload:
        """Insert a new upload without parts."""
        upload.created_at = self._clock.now()
        upload.expires_at = upload.created_at + self._retention
        self._session.add(upload)
        self._session.flush()
        return upload

    def get(self, upload_id: str, *, lock: bool = False) -> Upload:
        """The upload; with `lock`, nobody else changes it or its parts until the transaction ends.

        Raises:
            NotFoundError: if there is none.
        """
        query = select(Upload).where(Upload.id == upload_id)
        if lock:
            query = query.with_for_update().execution_options(populate_existing=True)
        upload = self._session.scalars(query).one_or_none()
        if upload is None:
            raise NotFoundError(f"There is no upload {upload_id!r}: it was deleted, or it expired.")
        return upload

    def list(
        self, *, limit: int, descending: bool = True, after: str | None = None, before: str | None = None
    ) -> tuple[Sequence[Upload], bool]:
        """One page in order of creation, and whether more follow; `before` gives the page that ends there.

        Raises:
            NotFoundError: if `after` or `before` names no upload.
        """
        return page(
            self._session,
            select(Upload),
            Upload,
            limit=limit,
            descending=descending,
            after=after,
            before=before,
            get=self.get,
        )

    def parts(self, upload_id: str) -> Sequence[UploadPart]:
        """The parts that are there, in order."""
        query = select(UploadPart).where(UploadPart.upload_id == upload_id).order_by(UploadPart.number)
        return self._session.scalars(query).all()

    def extent(self, upload_id: str) -> tuple[int, int]:
        """The highest number of the parts that are there, and how many bytes they are together."""
        query = select(func.max(UploadPart.number), func.sum(UploadPart.size_bytes))
        number, size_bytes = self._session.execute(query.where(UploadPart.upload_id == upload_id)).one()
        return number or 0, int(size_bytes or 0)

    def put_part(self, upload: Upload, number: int, stored: StoredFile) -> str | None:
        """Note a part of a locked upload and renew the upload; the storage key of the part that it replaces."""
        upload.expires_at = self._clock.now() + self._retention
        part = self._session.get(UploadPart, (upload.id, number))
        replaced = None
        if part is None:
            part = UploadPart(upload_id=upload.id, number=number)
            self._session.add(part)
        else:
            replaced = part.storage_key
        part.size_bytes, part.sha256, part.storage_key = stored.size_bytes, stored.sha256, stored.key
        self._session.flush()
        return replaced

    def complete(self, upload: Upload, whole: StoredFile) -> None:
        """Put the whole file in place of the parts of a locked upload."""
        now = self._clock.now()
        upload.sha256, upload.storage_key, upload.completed_at = whole.sha256, whole.key, now
        upload.expires_at = now + self._retention
        self._session.execute(delete(UploadPart).where(UploadPart.upload_id == upload.id))
        self._session.flush()

    def remove(self, upload: Upload) -> None:
        """Forget an upload and its parts."""
        self._session.execute(delete(UploadPart).where(UploadPart.upload_id == upload.id))
        self._session.delete(upload)
        self._session.flush()

    def expired(self, limit: int) -> Sequence[str]:
        """Ids of uploads past their time."""
        query = select(Upload.id).where(Upload.expires_at <= self._clock.now()).order_by(Upload.expires_at)
        return self._session.scalars(query.limit(limit)).all()

    def holds(self, storage_key: str) -> bool:
        """Whether a complete upload, of any project, is this file."""
        held = select(exists().where(Upload.storage_key == storage_key))
        return bool(self._session.scalar(held, execution_options=EVERYBODY))

    def known_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of the storage keys that an upload of any project, or a part, names."""
        named = select(Upload.storage_key).where(Upload.storage_key.in_(keys))
        wholes = self._session.scalars(named, execution_options=EVERYBODY)
        parts = self._session.scalars(select(UploadPart.storage_key).where(UploadPart.storage_key.in_(keys)))
        return {key for key in (*wholes, *parts) if key is not None}
