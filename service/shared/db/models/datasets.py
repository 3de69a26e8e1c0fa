"""Uploaded datasets and the report of their check."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, Id, OfProject, StorableJson, StorableName
from service.shared.db.models.jobs import Name, stored_enum
from service.shared.states import DatasetState


class Dataset(OfProject, Base):
    """One uploaded archive. It is checked under a lease like a job's: `epoch` fences the checking worker."""

    __tablename__ = "datasets"
    __table_args__ = (
        Index(None, "state", "created_at", "id"),
        Index(None, "created_at", "id"),
        Index(None, "project", "created_at", "id"),
        Index(None, "sha256"),
        Index(None, "storage_key"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    state: Mapped[DatasetState] = mapped_column(stored_enum(DatasetState))
    filename: Mapped[str] = mapped_column(Name)
    source: Mapped[dict[str, Any] | None]
    """`{type: upload|uri|path, ...}`; None: the archive came with the request."""
    sha256: Mapped[str] = mapped_column(StorableName(64))
    """Of the archive; "" until it has been fetched from its source."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    storage_key: Mapped[str | None] = mapped_column(StorableName(300))
    """The archive, which datasets of the same bytes share. None before it has been fetched, and once a deleted
    dataset's archive is gone."""
    preview: Mapped[list[dict[str, Any]] | None] = mapped_column(StorableJson)
    """Pictures drawn of it: `{split, file_name, width, height, instances, sha256, bytes}`; their files lie beside
    the archive."""
    report: Mapped[dict[str, Any] | None]
    """The validation report as clients see it."""
    error: Mapped[dict[str, Any] | None]
    """`{code, message, hint, retryable}` of a dataset that failed."""

    epoch: Mapped[int] = mapped_column(default=0)
    lost_attempts: Mapped[int] = mapped_column(default=0)
    hb_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    worker_id: Mapped[str | None] = mapped_column(Name)
    """Worker that checks it now."""
    next_publish_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]

    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
