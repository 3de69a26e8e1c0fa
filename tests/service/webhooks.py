"""Webhook endpoints and deliveries for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.shared.vault import Vault
from service.shared.webhooks import EventType, MessageFormat
from service.usecases.webhooks import EndpointSpec, create_endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.shared.db.models import WebhookDelivery
    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database

KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="  # of tests
URL = "https://hooks.example.org/sam3"
ALL = tuple(EventType)


def add_endpoint(
    database: Database,
    settings: Settings,
    url: str = URL,
    *,
    events: Sequence[EventType] = ALL,
    project: str = "default",
    form: MessageFormat = MessageFormat.STANDARD,
) -> tuple[str, str]:
    """Id and secret of a new endpoint."""
    vault = Vault(settings)
    with database.write() as unit:
        endpoint = create_endpoint(unit, settings, vault, EndpointSpec(url, project, None, form, events))
    return endpoint.id, vault.open(endpoint.secret)


def deliveries(database: Database, endpoint_id: str, **options: Any) -> Sequence[WebhookDelivery]:
    """Deliveries of an endpoint, oldest first."""
    page: dict[str, Any] = {"limit": 100, "descending": False, "after": None, "before": None}
    with database.read() as unit:
        return unit.deliveries.list(endpoint_id, **page | options)[0]
