"""Webhook endpoints, what was sent to them, and sending it again."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response

from service.api.answers import POLL_AFTER_S, created, created_responses
from service.api.bodies import StrictJsonRoute
from service.api.deps import AppServices, IdempotencyKey, ReadUnit, WriteUnit
from service.api.errors import problem_responses
from service.api.response_headers import headers
from service.api.schemas.lists import Page, page_of
from service.api.schemas.webhooks import (
    WebhookDeliveryQuery,
    WebhookDeliveryRead,
    WebhookEndpointCreate,
    WebhookEndpointPatch,
    WebhookEndpointQuery,
    WebhookEndpointRead,
    WebhookEndpointWithSecret,
    delivery_read,
    endpoint_read,
    endpoint_spec,
    with_secret,
)
from service.usecases import webhooks as usecase
from service.usecases.idempotency import Answer, answer_once, fingerprint

router = APIRouter(tags=["webhooks"], route_class=StrictJsonRoute)

EndpointId = Annotated[
    str, Path(max_length=64, description="The endpoint.", examples=["whe_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
]
DeliveryId = Annotated[
    str, Path(max_length=64, description="The delivery.", examples=["whd_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
]
ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"headers": headers("Location", "Retry-After")}}


@router.post(
    "/webhook_endpoints",
    status_code=201,
    response_model=WebhookEndpointWithSecret,
    responses={**created_responses("Cache-Control"), **problem_responses(400, 409, 413, 415, 422, 503)},
    summary="Have messages about a project sent to a URL",
)
def create_webhook_endpoint(
    unit: WriteUnit, found: AppServices, body: WebhookEndpointCreate, idempotency_key: IdempotencyKey = None
) -> Response:
    """Have messages about a project sent to a URL, signed with the secret that only this answer shows."""

    def make() -> Answer:
        endpoint = usecase.create_endpoint(
            unit, found.settings, found.vault, endpoint_spec(body, found.database.project)
        )
        read = with_secret(endpoint, endpoint.secret)  # sealed, as answers are kept
        return Answer(read.urls.self, read.model_dump(mode="json"))

    request_sha256 = fingerprint(body.model_dump(mode="json", exclude_unset=True))
    answer = answer_once(unit, "webhook_endpoints.create", idempotency_key, request_sha256, make)
    opened = answer.body | {"secret": found.vault.open(answer.body["secret"])}
    return created(answer, {"Cache-Control": "no-store"}, body=opened)


@router.get("/webhook_endpoints", responses=problem_responses(404, 422, 503))
def list_webhook_endpoints(
    unit: ReadUnit, query: Annotated[WebhookEndpointQuery, Query()]
) -> Page[WebhookEndpointRead]:
    """Endpoints, newest first."""
    rows, has_more = unit.webhooks.list(
        **query.window(),
        project=query.project,
    )
    return page_of(rows, has_more, endpoint_read, lambda read: read.id)


@router.get("/webhook_endpoints/{endpoint_id}", responses=problem_responses(404, 422, 503))
def get_webhook_endpoint(unit: ReadUnit, endpoint_id: EndpointId) -> WebhookEndpointRead:
    """One endpoint, without its secret."""
    return endpoint_read(unit.webhooks.get(endpoint_id))


@router.patch("/webhook_endpoints/{endpoint_id}", responses=problem_responses(400, 404, 413, 415, 422, 503))
def change_webhook_endpoint(
    unit: WriteUnit, found: AppServices, endpoint_id: EndpointId, body: WebhookEndpointPatch
) -> WebhookEndpointRead:
    """Change the URL, the events or the description; disable or enable it."""
    changes = {name: getattr(body, name) for name in body.model_fields_set}
    return endpoint_read(usecase.change_endpoint(unit, found.settings, endpoint_id, changes))


@router.delete("/webhook_endpoints/{endpoint_id}", status_code=204, responses=problem_responses(404, 422, 503))
def delete_webhook_endpoint(unit: WriteUnit, endpoint_id: EndpointId) -> None:
    """Delete an endpoint with its deliveries; what waits for it is not sent any more."""
    usecase.delete_endpoint(unit, endpoint_id)


@router.post(
    "/webhook_endpoints/{endpoint_id}/rotate_secret",
    responses={200: {"headers": headers("Cache-Control")}, **problem_responses(404, 422, 503)},
)
def rotate_webhook_secret(
    response: Response, unit: WriteUnit, found: AppServices, endpoint_id: EndpointId
) -> WebhookEndpointWithSecret:
    """Give the endpoint a new secret, which only this answer shows. For 24 hours messages carry a second signature,
    made with the secret before.
    """
    endpoint = usecase.rotate_secret(unit, found.vault, endpoint_id)
    response.headers["Cache-Control"] = "no-store"
    return with_secret(endpoint, found.vault.open(endpoint.secret))


async def limit_tests(found: AppServices) -> None:
    """Raise TooManyRequestsError if the project has sent too many: nobody's server is to be shot at from here."""
    limit = found.settings.webhook_tests_per_minute
    standing = found.rates.hit(f"webhook_tests:{found.database.project or ''}", limit)
    standing.require(f"A project may send {limit} test messages a minute: wait a little.")


@router.post(
    "/webhook_endpoints/{endpoint_id}/test",
    status_code=202,
    dependencies=[Depends(limit_tests)],
    responses={**ACCEPTED, **problem_responses(404, 409, 422, 429, 503)},
)
def test_webhook_endpoint(response: Response, unit: WriteUnit, endpoint_id: EndpointId) -> WebhookDeliveryRead:
    """Send a message of type `webhook.test` now; read the delivery to see how it went."""
    return _accepted(response, delivery_read(usecase.send_test(unit, endpoint_id)))


@router.get(
    "/webhook_endpoints/{endpoint_id}/deliveries",
    responses=problem_responses(404, 422, 503),
    summary="Messages for an endpoint, newest first",
)
def list_webhook_deliveries(
    unit: ReadUnit, endpoint_id: EndpointId, query: Annotated[WebhookDeliveryQuery, Query()]
) -> Page[WebhookDeliveryRead]:
    """Messages for an endpoint, newest first, each with how its attempts went. They are kept for 30 days, or as the
    operator has set.
    """
    unit.webhooks.get(endpoint_id)
    rows, has_more = unit.deliveries.list(
        endpoint_id,
        **query.window(),
        states=query.status,
    )
    return page_of(rows, has_more, delivery_read, lambda read: read.id)


@router.get(
    "/webhook_deliveries/{delivery_id}",
    responses={200: {"headers": headers("Retry-After")}, **problem_responses(404, 422, 503)},
)
def get_webhook_delivery(response: Response, unit: ReadUnit, delivery_id: DeliveryId) -> WebhookDeliveryRead:
    """One message for one endpoint, and how its attempts went."""
    read = delivery_read(unit.deliveries.get(delivery_id))
    if not read.is_terminal:
        response.headers["Retry-After"] = str(POLL_AFTER_S)
    return read


@router.post(
    "/webhook_deliveries/{delivery_id}/redeliver",
    status_code=202,
    responses={**ACCEPTED, **problem_responses(404, 409, 422, 503)},
    summary="Send a message again now",
)
def redeliver_webhook(response: Response, unit: WriteUnit, delivery_id: DeliveryId) -> WebhookDeliveryRead:
    """Send a message again now, with the same `webhook-id`, and as often as a new one if that fails."""
    return _accepted(response, delivery_read(usecase.redeliver(unit, delivery_id)))


def _accepted(response: Response, read: WebhookDeliveryRead) -> WebhookDeliveryRead:
    response.headers["Location"] = read.urls.self
    response.headers["Retry-After"] = str(POLL_AFTER_S)
    return read
