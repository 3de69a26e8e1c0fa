"""Webhook endpoints and deliveries as clients create and see them."""

from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints

from sam3_lora.config import Section
from service.api.schemas.jobs import Project, chosen_project, without_defaults
from service.api.schemas.lists import PageQuery, Read, Separated
from service.shared.db.models import WebhookDelivery, WebhookEndpoint
from service.shared.states import WorkState
from service.shared.webhooks import EventType, MessageFormat
from service.usecases.webhooks import EndpointSpec


def _member(kind: type[EventType | MessageFormat]) -> BeforeValidator:
    """Lets a strict model take a member by its value, as JSON has it, and names them all where it is none."""

    def member(value: Any) -> Any:
        if value in list(kind):
            return kind(value)
        raise ValueError(f"must be one of {', '.join(kind)}")

    return BeforeValidator(member)


Url = Annotated[
    str,
    StringConstraints(min_length=9, max_length=2000, pattern=r"^https?://[\x21-\x7e]+$"),
    Field(examples=["https://example.org/hooks/sam3"]),
]
Events = Annotated[
    list[Annotated[EventType, _member(EventType)]],
    Field(min_length=1, max_length=100, examples=[["job.succeeded", "job.failed"]]),
]
Description = Annotated[str, StringConstraints(max_length=500)]


class WebhookEndpointCreate(Section):
    """Where to send messages about what happens in a project."""

    url: Url
    """Receives a POST for each message. https, a public address, no redirects."""
    events: Events
    """What it is told of."""
    description: Description | None = None
    """For people."""
    project: Project | None = None
    """What happens in this project; null: in that of the API key, else in `default`."""
    format: Annotated[MessageFormat, _member(MessageFormat)] = MessageFormat.STANDARD
    """standard: `{type, timestamp, data}`. openai: as OpenAI's clients parse it, `{id, object, created_at, type, data:
    {id}}` with their names, for job.succeeded, job.failed and job.cancelled. Both are signed in the same way."""


class WebhookEndpointPatch(Section):
    """What may change of an endpoint; what is omitted stays."""

    model_config = ConfigDict(json_schema_extra=without_defaults)

    url: Url = ""
    """A new URL begins without failures."""
    events: Events = Field([])
    """All that it is told of from now on."""
    description: Description | None = None
    """Null removes it."""
    enabled: bool = True
    """False: it is told of nothing, and what waits for it fails. True also forgets earlier failures."""


class WebhookEndpointQuery(PageQuery):
    project: str | None = Field(None, max_length=64)
    """Only endpoints of this project."""


class WebhookDeliveryQuery(PageQuery):
    status: Annotated[list[WorkState], Separated] = Field([], max_length=20, examples=[["failed"]])
    """Only deliveries in these states; repeat it, or separate them by commas."""


class WebhookEndpointUrls(Read):
    self: str
    """The endpoint."""
    deliveries: str
    """What was sent to it, or will be."""


class WebhookEndpointRead(Read):
    """Where messages go."""

    id: str
    """Opaque."""
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    """Always `webhook_endpoint`."""
    project: str
    """Whose jobs it is told of."""
    url: str
    """Receives the messages."""
    description: str | None
    """For people."""
    format: MessageFormat
    """standard or openai."""
    events: list[EventType]
    """What it is told of."""
    enabled: bool
    """Whether anything is sent."""
    disabled_reason: str | None
    """Why the service has disabled it; null if it has not."""
    failing_since: datetime | None
    """The first failure after the last success; after five days (or as the operator has set) of nothing but failures
    it is disabled."""
    previous_secret_until: datetime | None
    """Until then messages are also signed with the secret before the last rotation."""
    created_at: datetime
    """When it was created."""
    updated_at: datetime
    """When it was last changed."""
    urls: WebhookEndpointUrls
    """Where to go on."""


class WebhookEndpointWithSecret(WebhookEndpointRead):
    """An endpoint with its new secret, which is shown this once."""

    secret: str = Field(repr=False)
    """`whsec_` and Base64: what receivers verify messages with."""


class WebhookAttempt(Read):
    number: int
    """From 1."""
    at: datetime
    """When it began."""
    duration_s: float
    """Seconds."""
    status: int | None
    """HTTP status of the receiver's answer."""
    error: str | None
    """Why there was no answer."""
    response: str | None
    """Beginning of the answer's body."""


class WebhookDeliveryFailure(Read):
    code: Literal["not_delivered", "endpoint_disabled", "worker_lost"]
    """Stable name."""
    message: str
    """What went wrong."""
    hint: str
    """What to do about it."""
    retryable: bool
    """Whether a redelivery may succeed."""


class WebhookDeliveryUrls(Read):
    self: str
    """The delivery."""
    endpoint: str
    """Where it goes."""


class WebhookDeliveryRead(Read):
    """One message for one endpoint."""

    id: str
    """Opaque."""
    object: Literal["webhook_delivery"] = "webhook_delivery"
    """Always `webhook_delivery`."""
    endpoint_id: str
    """Where it goes."""
    message_id: str
    """The `webhook-id` header: the same in every attempt."""
    type: str
    """The event, or `webhook.test`."""
    status: WorkState
    """queued (also between attempts), running, succeeded or failed."""
    is_terminal: bool
    """Whether it has ended; a redelivery begins anew."""
    payload: dict[str, Any]
    """The message."""
    attempt: int
    """Attempts so far."""
    attempts: list[WebhookAttempt]
    """The last 20 of them, oldest first."""
    next_attempt_at: datetime | None
    """When it is sent at the earliest, if it is queued."""
    error: WebhookDeliveryFailure | None
    """Why it failed."""
    created_at: datetime
    """When the event happened."""
    finished_at: datetime | None
    """When it was delivered or given up."""
    urls: WebhookDeliveryUrls
    """Where to go on."""


def endpoint_spec(body: WebhookEndpointCreate, project: str | None) -> EndpointSpec:
    """The same for the use case; `project`: the only one that the request may use."""
    return EndpointSpec(body.url, chosen_project(body.project, project), body.description, body.format, body.events)


def endpoint_read(endpoint: WebhookEndpoint) -> WebhookEndpointRead:
    url = f"/v1/webhook_endpoints/{endpoint.id}"
    return WebhookEndpointRead(
        id=endpoint.id,
        project=endpoint.project,
        url=endpoint.url,
        description=endpoint.description,
        format=endpoint.format,
        events=[EventType(event) for event in endpoint.events],
        enabled=endpoint.enabled,
        disabled_reason=endpoint.disabled_reason,
        failing_since=endpoint.failing_since,
        previous_secret_until=endpoint.previous_secret_until,
        created_at=endpoint.created_at,
        updated_at=endpoint.updated_at,
        urls=WebhookEndpointUrls(self=url, deliveries=f"{url}/deliveries"),
    )


def with_secret(endpoint: WebhookEndpoint, secret: str) -> WebhookEndpointWithSecret:
    return WebhookEndpointWithSecret(**endpoint_read(endpoint).model_dump(), secret=secret)


def delivery_read(delivery: WebhookDelivery) -> WebhookDeliveryRead:
    return WebhookDeliveryRead(
        id=delivery.id,
        endpoint_id=delivery.endpoint_id,
        message_id=delivery.message_id,
        type=delivery.type,
        status=delivery.state,
        is_terminal=delivery.finished_at is not None,
        payload=orjson.loads(delivery.body),
        attempt=delivery.attempt,
        attempts=[WebhookAttempt(**entry) for entry in delivery.attempts],
        next_attempt_at=delivery.not_before if delivery.state is WorkState.QUEUED else None,
        error=None if delivery.error is None else WebhookDeliveryFailure(**delivery.error),
        created_at=delivery.created_at,
        finished_at=delivery.finished_at,
        urls=WebhookDeliveryUrls(
            self=f"/v1/webhook_deliveries/{delivery.id}", endpoint=f"/v1/webhook_endpoints/{delivery.endpoint_id}"
        ),
    )
