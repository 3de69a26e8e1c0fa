"""Worker processes, as they report themselves."""

from datetime import datetime

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base
from service.shared.db.models.jobs import Name


class Worker(Base):
    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(Name, primary_key=True)
    kind: Mapped[str] = mapped_column(Name)
    """gpu | cpu"""
    host: Mapped[str] = mapped_column(Name)
    pid: Mapped[int]
    device: Mapped[str | None] = mapped_column(Name)
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of the device that its trainers use."""
    started_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
