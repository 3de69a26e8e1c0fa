"""Webhook endpoints: where they may point, what they are told, and their secrets."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from service.shared.addresses import check_receiver
from service.shared.db.models import WebhookEndpoint
from service.shared.errors import EndpointDisabledError, InvalidRequestError, UrlRefusedError, fault
from service.shared.ids import new_id
from service.shared.queue import Task
from service.shared.webhooks import OPENAI_NAMES, TEST, MessageFormat, message, new_secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from service.shared.db.models import WebhookDelivery
    from service.shared.settings import Settings
    from service.shared.unit_of_work import UnitOfWork
    from service.shared.vault import Vault
    from service.shared.webhooks import EventType

ROTATION = timedelta(hours=24)


@dataclass(frozen=True)
class EndpointSpec:
    """An endpoint as a client asks for it."""

    url: str
    project: str
    description: str | None
    format: MessageFormat
    events: Sequence[EventType]


def create_endpoint(unit: UnitOfWork, settings: Settings, vault: Vault, spec: EndpointSpec) -> WebhookEndpoint:
    """A new endpoint, enabled, with a new secret (sealed).

    Raises:
        UrlRefusedError: if nothing may be sent to the URL.
        InvalidRequestError: if the format has no name for an event.
        WebhooksUnavailableError: if this installation cannot keep secrets.
        EndpointLimitError: if the project has as many endpoints as it may have.
    """
    with _at_the_url():
        check_receiver(settings, spec.url)
    _check_events(spec.format, spec.events)
    return unit.webhooks.add(
        WebhookEndpoint(
            id=new_id("whe"),
            project=spec.project,
            url=spec.url,
            description=spec.description,
            format=spec.format,
            events=_distinct(spec.events),
            enabled=True,
            secret=vault.seal(new_secret()),
        )
    )


def change_endpoint(unit: UnitOfWork, settings: Settings, endpoint_id: str, changes: dict[str, Any]) -> WebhookEndpoint:
    """Set any of `url`, `events`, `description`, `enabled`; a new URL, and enabling, forget earlier failures.

    Raises:
        NotFoundError, UrlRefusedError, InvalidRequestError: as for a new one.
    """
    endpoint = unit.webhooks.get(endpoint_id, lock=True)
    values = dict(changes)
    if "url" in values:
        with _at_the_url():
            check_receiver(settings, values["url"])
        values["failing_since"] = None
    if "events" in values:
        _check_events(endpoint.format, values["events"])
        values["events"] = _distinct(values["events"])
    if values.get("enabled"):
        values |= {"failing_since": None, "disabled_reason": None}
    return unit.webhooks.change(endpoint, **values)


def delete_endpoint(unit: UnitOfWork, endpoint_id: str) -> None:
    """Delete an endpoint with its deliveries; what is being sent meanwhile may still arrive.

    Raises:
        NotFoundError: if there is none.
    """
    unit.webhooks.remove(unit.webhooks.get(endpoint_id, lock=True))


def rotate_secret(unit: UnitOfWork, vault: Vault, endpoint_id: str) -> WebhookEndpoint:
    """Give the endpoint a new secret (sealed); for a day messages are signed with the present one as well.

    Raises:
        NotFoundError: if there is none.
        WebhooksUnavailableError: if this installation cannot keep secrets.
    """
    endpoint = unit.webhooks.get(endpoint_id, lock=True)
    until = unit.clock.now() + ROTATION
    rotated = {"previous_secret": endpoint.secret, "previous_secret_until": until, "secret": vault.seal(new_secret())}
    return unit.webhooks.change(endpoint, **rotated)


def send_test(unit: UnitOfWork, endpoint_id: str) -> WebhookDelivery:
    """Have a message of type `webhook.test` sent now.

    Raises:
        NotFoundError: if there is no such endpoint.
        EndpointDisabledError: if it is disabled.
    """
    endpoint = _enabled(unit, endpoint_id)
    data = {"id": endpoint.id, "object": "webhook_endpoint", "project": endpoint.project}
    message_id = new_id("msg")
    body = message(endpoint.format, message_id, TEST, unit.clock.now(), data)
    delivery = unit.deliveries.post(endpoint.id, TEST, message_id, body)
    unit.ring_after_commit(Task.DELIVER, delivery.id)
    return delivery


def redeliver(unit: UnitOfWork, delivery_id: str) -> WebhookDelivery:
    """Have a message sent again, now, with the same `webhook-id`; one that is being sent stays as it is.

    Raises:
        NotFoundError: if there is no such delivery.
        EndpointDisabledError: if its endpoint is disabled.
    """
    _enabled(unit, unit.deliveries.get(delivery_id).endpoint_id)
    delivery = unit.deliveries.redeliver(unit.deliveries.get(delivery_id, lock=True))
    unit.ring_after_commit(Task.DELIVER, delivery.id)
    return delivery


def _enabled(unit: UnitOfWork, endpoint_id: str) -> WebhookEndpoint:
    """The endpoint, locked."""
    endpoint = unit.webhooks.get(endpoint_id, lock=True)
    if not endpoint.enabled:
        raise EndpointDisabledError(f"Webhook endpoint {endpoint_id} is disabled: enable it first.")
    return endpoint


def _check_events(form: MessageFormat, events: Sequence[EventType]) -> None:
    if form is not MessageFormat.OPENAI:
        return
    faults = [
        fault(f"/events/{number}", "event_without_name", f"OpenAI has no name for {event}")
        for number, event in enumerate(events)
        if event not in OPENAI_NAMES
    ]
    if faults:
        names = ", ".join(OPENAI_NAMES)
        raise InvalidRequestError(f"An endpoint of format openai is told of {names} only.", errors=faults)


def _distinct(events: Sequence[EventType]) -> list[str]:
    return list(dict.fromkeys(event.value for event in events))


@contextmanager
def _at_the_url() -> Iterator[None]:
    try:
        yield
    except UrlRefusedError as error:
        error.errors = [fault("/url", error.code, error.message)]
        raise
