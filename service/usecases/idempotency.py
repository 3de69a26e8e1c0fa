"""Creating something once per idempotency key, however often and however concurrently it is asked for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from service.shared.errors import IdempotencyKeyReusedError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.shared.db.models import IdempotencyKey
    from service.shared.unit_of_work import UnitOfWork

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What a create answered: `location` and the JSON body; `replayed` if it was answered before."""

    location: str
    body: dict[str, Any]
    replayed: bool = False


def fingerprint(value: object) -> str:
    """SHA-256 of a JSON value, independent of spacing and the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Keyed(Generic[T]):
    """What is wanted, and the key that it came with; `request_sha256` tells requests with one key apart."""

    wanted: T
    key: str | None
    request_sha256: str


def answer_once(
    unit: UnitOfWork, operation: str, key: str | None, request_sha256: str, create: Callable[[], Answer]
) -> Answer:
    """The answer of `create`, or the one already given under the key.

    The key and what was created are written by one transaction; a concurrent request with the same key waits
    for it and then gets its answer.

    Raises:
        IdempotencyKeyReusedError: if the key came with another request before.
    """
    [answer] = answer_all(unit, operation, [Keyed(None, key, request_sha256)], lambda _: [create()])
    if isinstance(answer, ServiceError):
        raise answer
    return answer


def answer_all(
    unit: UnitOfWork,
    operation: str,
    requests: Sequence[Keyed[T]],
    create: Callable[[Sequence[T]], Sequence[Answer | ServiceError]],
) -> list[Answer | ServiceError]:
    """As `answer_once`, for many requests: to each its answer, or why it is refused."""
    answers: dict[int, Answer | ServiceError] = {}
    while len(answers) < len(requests):
        # Of requests with one key the first that is left; the others are told its answer, or try for themselves.
        turn: dict[str | int, int] = {}
        for number, request in enumerate(requests):
            if number not in answers:
                turn.setdefault(number if request.key is None else request.key, number)
        given = _answer_distinct(unit, operation, [requests[number] for number in turn.values()], create)
        answers |= dict(zip(turn.values(), given, strict=True))
    return [answers[number] for number in range(len(requests))]


def _answer_distinct(
    unit: UnitOfWork,
    operation: str,
    requests: Sequence[Keyed[T]],
    create: Callable[[Sequence[T]], Sequence[Answer | ServiceError]],
) -> list[Answer | ServiceError]:
    keys = {request.key: request.request_sha256 for request in requests if request.key is not None}
    reserved = unit.idempotency.reserve(operation, keys)
    used = unit.idempotency.get_all(operation, keys.keys() - reserved)
    new = [request for request in requests if request.key not in used]
    created = list(create([request.wanted for request in new])) if new else []
    kept, refused = {}, set()
    for request, answer in zip(new, created, strict=True):
        if request.key is None:
            continue
        if isinstance(answer, Answer):
            kept[request.key] = {"location": answer.location, "body": answer.body}
        else:
            refused.add(request.key)
    unit.idempotency.complete(operation, kept)
    unit.idempotency.release(operation, refused)
    made = iter(created)
    return [
        _replayed(used[request.key], request) if request.key is not None and request.key in used else next(made)
        for request in requests
    ]


def _replayed(earlier: IdempotencyKey, request: Keyed[Any]) -> Answer | ServiceError:
    if earlier.request_sha256 != request.request_sha256:
        return IdempotencyKeyReusedError(
            f"Idempotency-Key {request.key!r} was used for a different request: use a new key for each new resource."
        )
    return Answer(earlier.response["location"], earlier.response["body"], replayed=True)
