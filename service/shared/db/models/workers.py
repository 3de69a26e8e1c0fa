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
    """Of the smallest of the devices that its trainers use."""
    gpus: Mapped[int] = mapped_column(default=1, server_default="1")
    """What the jobs that it takes may need; of no meaning where it does not train."""
    started_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
