"""Answers already given under an idempotency key."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select, update

from service.shared.db.models import IdempotencyKey
from service.shared.db.repositories.inserts import insert_minding

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from service.shared.clock import Clock


class IdempotencyRepository:
    def __init__(self, session: Session, clock: Clock, project: str) -> None:
        self._session = session
        self._clock = clock
        self._project = project

    def reserve(self, operation: str, requests: Mapping[str, str]) -> set[str]:
        """Take keys for this transaction, waiting for others that have them; those that were not yet used.

        Args:
            requests: key -> SHA-256 of the request that came with it.
        """
        now = self._clock.now()
        rows = [
            # In one order by everybody, so that nobody waits for each other.
            {
                "project": self._project,
                "operation": operation,
                "key": key,
                "request_sha256": requests[key],
                "response": {},
                "created_at": now,
            }
            for key in sorted(requests)
        ]
        new = insert_minding(self._session, IdempotencyKey).on_conflict_do_nothing(
            index_elements=["project", "operation", "key"]
        )
        return set(self._session.scalars(new.returning(IdempotencyKey.key), rows)) if rows else set()

    def get_all(self, operation: str, keys: Collection[str]) -> dict[str, IdempotencyKey]:
        """Rows of those of the keys that are used, by key."""
        query = select(IdempotencyKey).where(*self._these(operation, keys))
        return {row.key: row for row in self._session.scalars(query)} if keys else {}

    def complete(self, operation: str, responses: Mapping[str, dict[str, Any]]) -> None:
        """Keep the answers under keys that this transaction has reserved."""
        rows = [
            {"project": self._project, "operation": operation, "key": key, "response": response}
            for key, response in responses.items()
        ]
        if rows:
            self._session.execute(update(IdempotencyKey), rows)

    def release(self, operation: str, keys: Collection[str]) -> None:
        """Give up keys that this transaction has reserved."""
        if keys:
            self._session.execute(delete(IdempotencyKey).where(*self._these(operation, keys)))

    def _these(self, operation: str, keys: Collection[str]) -> tuple[ColumnElement[bool], ...]:
        own = IdempotencyKey.project == self._project
        return own, IdempotencyKey.operation == operation, IdempotencyKey.key.in_(keys)

    def forget(self, older_than_s: float, operation: str | None = None) -> None:
        """Forget keys that were used longer ago; with `operation`, its own only."""
        since = self._clock.now() - timedelta(seconds=older_than_s)
        gone = delete(IdempotencyKey).where(IdempotencyKey.created_at < since)
        self._session.execute(gone if operation is None else gone.where(IdempotencyKey.operation == operation))
