"""Idempotency keys: which answer a key has already brought forth."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, StorableName


class IdempotencyKey(Base):
    """Written in the transaction that creates the resource, so that a key and its resource exist together."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)

    project: Mapped[str] = mapped_column(StorableName(64), primary_key=True, server_default="")
    """Of the request; "" where no keys are asked for, or of one who may see all projects."""
    operation: Mapped[str] = mapped_column(StorableName(48), primary_key=True)
    key: Mapped[str] = mapped_column(StorableName(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(StorableName(64))
    response: Mapped[dict[str, Any]]
    """`{status, headers, body}`."""
    created_at: Mapped[datetime]
