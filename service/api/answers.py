"""The response to a request that makes something, once per idempotency key."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Response

from service.api.response_headers import headers as described

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.usecases.idempotency import Answer

POLL_AFTER_S = 5
POLLED = {"Retry-After": str(POLL_AFTER_S)}
"""Of something that goes on: when to look at it again."""


def created_responses(*further: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the answer of `created`, with `further` headers."""
    return {201: {"headers": described("Location", "Idempotent-Replayed", *further)}}


def created(answer: Answer, headers: Mapping[str, str] = POLLED, *, body: dict[str, Any] | None = None) -> Response:
    """201 with the answer, or with `body` in place of the one that is kept under the key."""
    said = {"Location": answer.location, **headers}
    if answer.replayed:
        said["Idempotent-Replayed"] = "true"
    return Response(_to_json(answer.body if body is None else body), 201, said, "application/json")


def _to_json(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # an integer of more than 64 bits, which all others can write
        return json.dumps(body).encode()
