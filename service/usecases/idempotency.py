"""Creating something once per idempotency key, however often and however concurrently it is asked for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.shared.errors import IdempotencyKeyReusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.shared.unit_of_work import UnitOfWork


@dataclass(frozen=True)
class Answer:
    """What a create answered: `location` and the JSON body; `replayed` if it was answered before."""

    location: str
    body: dict[str, Any]
    replayed: bool = False


def fingerprint(value: object) -> str:
    """SHA-256 of a JSON value, independent of spacing and the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def answer_once(
    unit: UnitOfWork, operation: str, key: str | None, request_sha256: str, create: Callable[[], Answer]
) -> Answer:
    """The answer of `create`, or the one already given under the key.

    The key and what was created are written by one transaction; a concurrent request with the same key waits
    for it and then gets its answer.

    Raises:
        IdempotencyKeyReusedError: if the key came with another request before.
    """
    if key is None:
        return create()
    if unit.idempotency.reserve(operation, key, request_sha256):
        answer = create()
        unit.idempotency.complete(operation, key, {"location": answer.location, "body": answer.body})
        return answer
    earlier = unit.idempotency.get(operation, key)
    if earlier.request_sha256 != request_sha256:
        raise IdempotencyKeyReusedError(
            f"Idempotency-Key {key!r} was used for a different request: use a new key for each new resource."
        )
    return Answer(earlier.response["location"], earlier.response["body"], replayed=True)
