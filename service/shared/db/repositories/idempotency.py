"""Answers already given under an idempotency key."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert
from sqlalchemy.exc import IntegrityError

from service.shared.db.models import IdempotencyKey

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.shared.clock import Clock


class IdempotencyRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def get(self, operation: str, key: str) -> IdempotencyKey:
        """The row of a key that `reserve` found used."""
        return self._session.get_one(IdempotencyKey, (operation, key))

    def reserve(self, operation: str, key: str, request_sha256: str) -> bool:
        """Take the key for this transaction, waiting for another that has it; False if it is already used."""
        try:
            with self._session.begin_nested():
                self._session.execute(
                    insert(IdempotencyKey).values(
                        operation=operation,
                        key=key,
                        request_sha256=request_sha256,
                        response={},
                        created_at=self._clock.now(),
                    )
                )
        except IntegrityError:
            return False
        return True

    def complete(self, operation: str, key: str, response: dict[str, Any]) -> None:
        """Keep the answer under a key that this transaction has reserved."""
        row = self._session.get_one(IdempotencyKey, (operation, key))
        row.response = response
        self._session.flush()

    def forget(self, older_than_s: float, operation: str | None = None) -> None:
        """Forget keys that were used longer ago; with `operation`, its own only."""
        since = self._clock.now() - timedelta(seconds=older_than_s)
        gone = delete(IdempotencyKey).where(IdempotencyKey.created_at < since)
        self._session.execute(gone if operation is None else gone.where(IdempotencyKey.operation == operation))
