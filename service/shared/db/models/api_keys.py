"""Keys that clients of the API show."""

from datetime import datetime

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, Id, StorableName
from service.shared.db.models.jobs import Name


class ApiKey(Base):
    """Of the secret only a hash is kept: 256 random bits need no slow one."""

    __tablename__ = "api_keys"
    __table_args__ = (Index(None, "project", "created_at", "id"), Index(None, "previous_sha256"))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    project: Mapped[str | None] = mapped_column(StorableName(64))
    """None: all projects."""
    scopes: Mapped[list[str]]
    secret_sha256: Mapped[str] = mapped_column(StorableName(64), unique=True)
    hint: Mapped[str] = mapped_column(StorableName(16))
    """The end of the secret, to tell keys apart."""
    previous_sha256: Mapped[str | None] = mapped_column(StorableName(64))
    """Of the secret before the last rotation."""
    previous_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
