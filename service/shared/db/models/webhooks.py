"""Webhook endpoints, and every message for one of them: the outbox of what happened."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, Id, OfProject, StorableJson, StorableName
from service.shared.db.models.jobs import Name, stored_enum
from service.shared.db.models.work import Work
from service.shared.webhooks import MessageFormat


class WebhookEndpoint(OfProject, Base):
    """Where messages about a project go. Secrets are kept as `Vault.seal` gave them."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index(None, "project", "created_at", "id"), Index(None, "created_at", "id"))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    url: Mapped[str] = mapped_column(StorableName(2000))
    description: Mapped[str | None] = mapped_column(StorableName(500))
    format: Mapped[MessageFormat] = mapped_column(stored_enum(MessageFormat))
    events: Mapped[list[str]]
    """`EventType`s that it gets."""
    enabled: Mapped[bool]
    disabled_reason: Mapped[str | None]
    """Why the service has disabled it; None if it has not."""
    failing_since: Mapped[datetime | None]
    """First failure after the last success."""
    secret: Mapped[str]
    previous_secret: Mapped[str | None]
    previous_secret_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class WebhookDelivery(Work, Base):
    """One message for one endpoint. `lost_attempts` counts failed tries since it was last asked for."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(None, "state", "not_before", "id"),
        Index(None, "endpoint_id", "created_at", "id"),
        Index(None, "endpoint_id", "state", "created_at", "id"),
        Index(None, "finished_at"),
    )

    endpoint_id: Mapped[str] = mapped_column(Id, ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    message_id: Mapped[str] = mapped_column(Id)
    """The same for all endpoints that get the message."""
    type: Mapped[str] = mapped_column(Name)
    body: Mapped[str]
    """As it is sent."""
    attempt: Mapped[int] = mapped_column(default=0)
    """Tries so far."""
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(StorableJson)
    """The last of them: `{number, at, duration_s, status, error, response}`."""
