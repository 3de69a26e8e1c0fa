"""Published checkpoints: rows exist only for files that are complete in storage."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.shared.db.models.base import Base, Id, StorableName
from service.shared.db.models.jobs import Name


class CheckpointFile(Base):
    __tablename__ = "checkpoint_files"

    checkpoint_id: Mapped[str] = mapped_column(Id, ForeignKey("checkpoints.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(StorableName(64))
    crc32: Mapped[int | None] = mapped_column(BigInteger)
    """As zip archives have it; None for files of an older version of this service."""
    storage_key: Mapped[str] = mapped_column(StorableName(300), index=True)


class Checkpoint(Base):
    __tablename__ = "checkpoints"
    __table_args__ = (Index(None, "job_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    kind: Mapped[str] = mapped_column(Name)
    """epoch | best"""
    epoch: Mapped[int]
    """Training epoch, not the lease's."""
    step: Mapped[int] = mapped_column(BigInteger)
    metric: Mapped[str | None] = mapped_column(Name)
    value: Mapped[float | None]
    archive_sha256: Mapped[str | None] = mapped_column(StorableName(64))
    """Hash of the zip archive of all files; None where their CRCs are not known."""
    created_at: Mapped[datetime]
    files: Mapped[list[CheckpointFile]] = relationship(
        lazy="selectin", order_by="CheckpointFile.name", passive_deletes=True
    )
