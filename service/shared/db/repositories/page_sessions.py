"""Who has signed in to the pages, and with which key."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, select

from service.shared.db.models import ApiKey, PageSession
from service.shared.db.repositories.api_keys import may_be_used

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.shared.clock import Clock


class PageSessionRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def add(self, secret_sha256: str, key_id: str, lasts_s: float) -> None:
        """Begin a session of the key."""
        now = self._clock.now()
        expires_at = now + timedelta(seconds=lasts_s)
        self._session.add(
            PageSession(secret_sha256=secret_sha256, key_id=key_id, created_at=now, expires_at=expires_at)
        )
        self._session.flush()

    def find(self, secret_sha256: str) -> ApiKey | None:
        """The key of a session that has not ended, if it may still be used: not revoked, not expired."""
        now = self._clock.now()
        query = (
            select(ApiKey)
            .join(PageSession, PageSession.key_id == ApiKey.id)
            .where(PageSession.secret_sha256 == secret_sha256, PageSession.expires_at > now, may_be_used(now))
        )
        return self._session.scalars(query).one_or_none()

    def end(self, secret_sha256: str) -> None:
        """End a session, if there is one."""
        self._session.execute(delete(PageSession).where(PageSession.secret_sha256 == secret_sha256))

    def forget_ended(self) -> None:
        """Remove those whose time is over."""
        self._session.execute(delete(PageSession).where(PageSession.expires_at <= self._clock.now()))
