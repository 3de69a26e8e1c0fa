"""Keys of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, or_, select, update

from service.shared.db.models import ApiKey
from service.shared.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from service.shared.clock import Clock


def may_be_used(now: datetime) -> ColumnElement[bool]:
    """Whether a key was neither revoked nor has expired."""
    return and_(ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now))


class ApiKeyRepository:
    def __init__(self, session: Session, clock: Clock, project: str | None) -> None:
        """Keys of a project alone, if one is given; `find` looks among all."""
        self._session = session
        self._clock = clock
        self._project = project

    def add(self, key: ApiKey) -> ApiKey:
        """Insert a new key."""
        key.created_at = self._clock.now()
        self._session.add(key)
        self._session.flush()
        return key

    def find(self, secret_sha256: str) -> ApiKey | None:
        """The key with a secret of this hash, if it may still be used: not revoked, not expired."""
        now = self._clock.now()
        secret = or_(
            ApiKey.secret_sha256 == secret_sha256,
            (ApiKey.previous_sha256 == secret_sha256) & (ApiKey.previous_expires_at > now),
        )
        return self._session.scalars(select(ApiKey).where(secret, may_be_used(now))).one_or_none()

    def get(self, key_id: str, *, lock: bool = False) -> ApiKey:
        """The key, also one that was revoked.

        Raises:
            NotFoundError: if there is none.
        """
        query = select(ApiKey).where(ApiKey.id == key_id)
        if self._project is not None:
            query = query.where(ApiKey.project == self._project)
        key = self._session.scalars(query.with_for_update() if lock else query).one_or_none()
        if key is None:
            raise NotFoundError(f"There is no API key {key_id!r}.")
        return key

    def list(self) -> Sequence[ApiKey]:
        """Keys, newest first."""
        query = select(ApiKey).order_by(ApiKey.created_at.desc(), ApiKey.id.desc())
        if self._project is not None:
            query = query.where(ApiKey.project == self._project)
        return self._session.scalars(query).all()

    def note_use(self, key_id: str) -> None:
        """Remember that the key was used just now."""
        self._session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=self._clock.now()))
