"""Worker processes, as they report themselves."""

from datetime import datetime

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
    started_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
