"""Where something comes from: the request that asked for it, told to whoever works on it later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from service.shared import tracing

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUEST_ID = "request_id"


def present_origin() -> dict[str, Any] | None:
    """The request that is being answered; None where none is."""
    request_id = structlog.contextvars.get_contextvars().get(REQUEST_ID)
    found = tracing.carrier() | ({} if request_id is None else {REQUEST_ID: request_id})
    return found or None


def request_of(origin: Mapping[str, Any] | None) -> dict[str, str]:
    """The id of the request, for the log."""
    request_id = (origin or {}).get(REQUEST_ID)
    return {} if request_id is None else {REQUEST_ID: request_id}
