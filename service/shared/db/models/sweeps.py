"""Parameter sweeps: a row each for what was asked; everything else is told by their jobs."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, Id, OfProject
from service.shared.db.models.jobs import Name


class Sweep(OfProject, Base):
    __tablename__ = "sweeps"
    __table_args__ = (
        Index(None, "created_at", "id"),
        Index(None, "project", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    request: Mapped[dict[str, Any]]
    """As submitted."""
    created_at: Mapped[datetime]
