"""Trained models: the best adapter of a job that succeeded, and the other forms that were made of it."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.shared.db.models.base import Base, Id, OfProject, StorableName
from service.shared.db.models.jobs import Name
from service.shared.db.models.work import Work


class ModelFile(Base):
    """A file of the adapter; storage may hold it for the job's checkpoint as well."""

    __tablename__ = "model_files"

    model_id: Mapped[str] = mapped_column(Id, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(StorableName(64))
    crc32: Mapped[int | None] = mapped_column(BigInteger)
    storage_key: Mapped[str] = mapped_column(StorableName(300), index=True)


class Model(OfProject, Base):
    __tablename__ = "models"
    __table_args__ = (
        Index(None, "created_at", "id"),
        Index(None, "project", "created_at", "id"),
        Index(None, "base_model", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    job_id: Mapped[str | None] = mapped_column(Id, ForeignKey("jobs.id", ondelete="SET NULL"), index=True)
    """None once the job was deleted."""
    name: Mapped[str] = mapped_column(Name)
    base_model: Mapped[str] = mapped_column(Name)
    epoch: Mapped[int]
    """Training epoch of the checkpoint."""
    step: Mapped[int] = mapped_column(BigInteger)
    metric: Mapped[str | None] = mapped_column(Name)
    value: Mapped[float | None]
    archive_sha256: Mapped[str | None] = mapped_column(StorableName(64))
    created_at: Mapped[datetime]
    files: Mapped[list[ModelFile]] = relationship(lazy="selectin", order_by="ModelFile.name", passive_deletes=True)


class Export(Work, Base):
    """A model in another form, made by a worker when it is first asked for."""

    __tablename__ = "exports"
    __table_args__ = (UniqueConstraint("model_id", "format"), Index(None, "state", "created_at", "id"))

    model_id: Mapped[str] = mapped_column(Id, ForeignKey("models.id", ondelete="CASCADE"))
    format: Mapped[str] = mapped_column(Name)
    """peft | merged"""
    filename: Mapped[str | None] = mapped_column(Name)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(StorableName(64))
    storage_key: Mapped[str | None] = mapped_column(StorableName(300), index=True)
