"""Webhooks in the OpenAPI document: what is POSTed to endpoints. Nothing is answered here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Response

from service.api.schemas.messages import (
    CheckpointMessage,
    ComparisonMessage,
    DatasetMessage,
    EndpointMessage,
    JobMessage,
    OpenAIMessage,
)

MessageId = Annotated[
    str, Header(alias="webhook-id", description="Of the message: the same in every attempt, and in a redelivery.")
]
SentAt = Annotated[
    int, Header(alias="webhook-timestamp", description="When this attempt began, in seconds since 1970.")
]
Signature = Annotated[
    str,
    Header(
        alias="webhook-signature",
        description="`v1,Base64` of the HMAC-SHA256 of `{webhook-id}.{webhook-timestamp}.{body}` with the endpoint's "
        "secret (Standard Webhooks 1.0); for a day after its rotation also with the one before, separated by a space.",
    ),
]
RECEIVED: dict[int | str, dict[str, Any]] = {
    200: {"description": "Any 2xx within the time that the operator has set: delivered. Else it is sent again, later."},
    410: {"description": "Nothing more is to be sent here: the endpoint is disabled."},
}

router = APIRouter(
    tags=["webhooks"], default_response_class=Response, generate_unique_id_function=lambda route: route.name
)


@router.post("job", responses=RECEIVED, summary="A job has come into a state")
def receive_job(body: JobMessage, message_id: MessageId, at: SentAt, signature: Signature) -> None:
    """Sent for job.queued, job.started, job.paused, job.succeeded, job.failed and job.cancelled."""


@router.post("checkpoint", responses=RECEIVED, summary="A running job has saved a checkpoint")
def receive_checkpoint(body: CheckpointMessage, message_id: MessageId, at: SentAt, signature: Signature) -> None:
    """Sent for job.checkpoint."""


@router.post("dataset", responses=RECEIVED, summary="The check of a dataset has ended")
def receive_dataset(body: DatasetMessage, message_id: MessageId, at: SentAt, signature: Signature) -> None:
    """Sent for dataset.ready, dataset.invalid and dataset.failed."""


@router.post("comparison", responses=RECEIVED, summary="A comparison has ended")
def receive_comparison(body: ComparisonMessage, message_id: MessageId, at: SentAt, signature: Signature) -> None:
    """Sent for comparison.succeeded and comparison.failed."""


@router.post("test", responses=RECEIVED, summary="Somebody tries the endpoint")
def receive_test(body: EndpointMessage, message_id: MessageId, at: SentAt, signature: Signature) -> None:
    """Sent when `POST /webhook_endpoints/{endpoint_id}/test` asks for it."""


@router.post("openai", responses=RECEIVED, summary="A job has ended, as OpenAI's clients read it")
def receive_openai(body: OpenAIMessage, message_id: MessageId, at: SentAt, signature: Signature) -> None:
    """Sent instead of the others to endpoints of `format` openai, and of jobs only how they ended."""
