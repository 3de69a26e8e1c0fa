"""What a configuration would adapt and how much memory it would need, worked out by a worker once for each."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, StorableName
from service.shared.db.models.jobs import Name


class Estimate(Base):
    """A question, and its answer once there is one. Worked out twice it is the same, so that no lease fences it."""

    __tablename__ = "estimates"
    __table_args__ = (Index(None, "due_at"), Index(None, "created_at"))

    id: Mapped[str] = mapped_column(StorableName(64), primary_key=True)
    """SHA-256 of the question."""
    base_model: Mapped[str] = mapped_column(Name)
    config: Mapped[dict[str, Any]]
    """A complete `JobConfig`."""
    attempts: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime | None]
    """When a worker may take it (again); None once it is answered."""
    result: Mapped[dict[str, Any] | None]
    """What `sam3-lora inspect --json` printed."""
    error: Mapped[dict[str, Any] | None]
    """`{code, message, hint, retryable}` where there is no result."""
    created_at: Mapped[datetime]
