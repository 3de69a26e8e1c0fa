"""Who may do what: API keys, their scopes, and the project that a key is for."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from service.shared.db.models import ApiKey
from service.shared.errors import ForbiddenError, StateConflictError, UnauthorizedError, invalid
from service.shared.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Collection

    from service.shared.unit_of_work import UnitOfWork

PREFIX = "sam3_"
SECRET_BYTES = 32
HINT_LENGTH = 4
MAX_SECRET_LENGTH = 200
SESSION_S = 7 * 86400


class Scope(StrEnum):
    """What a key allows."""

    READ = "read"  # everything of the project
    WRITE = "write"  # create, change and delete datasets, jobs, models; includes read and predict
    PREDICT = "predict"  # ask models, and read what they are
    KEYS = "keys"  # make, rotate and revoke the project's keys
    ADMIN = "admin"  # everything, in all projects


INCLUDED = {
    Scope.WRITE: {Scope.READ, Scope.PREDICT},
    Scope.ADMIN: set(Scope),
}


@dataclass(frozen=True)
class Access:
    """What a request may do. `project` None: in every project."""

    scopes: frozenset[Scope]
    project: str | None = None
    key_id: str | None = None

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes

    def named(self) -> dict[str, str]:
        """Whose it is, for the log."""
        facts = {"key_id": self.key_id, "project": self.project}
        return {name: value for name, value in facts.items() if value is not None}


EVERYTHING = Access(frozenset(Scope))
"""Where no keys are asked for."""


@dataclass(frozen=True)
class NewKey:
    """A key and its secret, which is told this once."""

    key: ApiKey
    secret: str


def create_key(
    unit: UnitOfWork, access: Access, *, name: str, project: str | None, scopes: Collection[Scope], lasts_s: int | None
) -> NewKey:
    """A new key; nobody makes one that allows more than the own.

    Raises:
        ForbiddenError: if it would allow more, or be for another project.
        InvalidRequestError: if it is for all projects but not `admin`, or the other way round.
    """
    if (project is None) != (Scope.ADMIN in scopes):
        message = "a key with the scope admin is for all projects and has none; every other key needs one"
        raise invalid("/project", "project_and_scope", message)
    wanted = _with_included(scopes)
    if not wanted <= access.scopes or access.project not in (None, project):
        raise ForbiddenError("A key can make keys of its own project with its own scopes, no others.")
    secret = _new_secret()
    key = ApiKey(
        id=new_id("key"),
        name=name,
        project=project,
        scopes=sorted(scopes),
        secret_sha256=hash_of(secret),
        hint=secret[-HINT_LENGTH:],
        expires_at=None if lasts_s is None else unit.clock.now() + timedelta(seconds=lasts_s),
    )
    return NewKey(unit.api_keys.add(key), secret)


def rotate_key(unit: UnitOfWork, access: Access, key_id: str, *, grace_s: int) -> NewKey:
    """A new secret for a key; the present one goes on for so many seconds, any older one ends now.

    Raises:
        NotFoundError: if there is no such key.
        ForbiddenError: if it allows more than the own.
        StateConflictError: if it was revoked or has expired.
    """
    key = _own(unit, access, key_id)
    now = unit.clock.now()
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        raise StateConflictError(f"API key {key_id} was revoked or has expired: make a new one.")
    secret = _new_secret()
    key.previous_sha256, key.previous_expires_at = key.secret_sha256, now + timedelta(seconds=grace_s)
    key.secret_sha256, key.hint = hash_of(secret), secret[-HINT_LENGTH:]
    return NewKey(key, secret)


def revoke_key(unit: UnitOfWork, access: Access, key_id: str) -> None:
    """End a key at once; doing it again changes nothing.

    Raises:
        NotFoundError: if there is no such key.
        ForbiddenError: if it allows more than the own.
    """
    key = _own(unit, access, key_id)
    key.revoked_at = key.revoked_at or unit.clock.now()


def sign_in(unit: UnitOfWork, key_secret: str) -> str:
    """Begin a session with a key; the session's secret, for a cookie.

    Raises:
        UnauthorizedError: if there is no such key, or it was revoked or has expired.
    """
    key = unit.api_keys.find(hash_of(key_secret[: MAX_SECRET_LENGTH + 1]))
    if key is None:
        raise UnauthorizedError("This API key is not known, or it was revoked or has expired.")
    secret = secrets.token_urlsafe(SECRET_BYTES)
    unit.page_sessions.add(hash_of(secret), key.id, SESSION_S)
    return secret


def access_of(key: ApiKey) -> Access:
    """What the key allows."""
    return Access(_with_included([Scope(scope) for scope in key.scopes]), key.project, key.id)


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def _with_included(scopes: Collection[Scope]) -> frozenset[Scope]:
    return frozenset(scopes).union(*(INCLUDED.get(scope, set()) for scope in scopes))


def _own(unit: UnitOfWork, access: Access, key_id: str) -> ApiKey:
    key = unit.api_keys.get(key_id, lock=True)
    if not access_of(key).scopes <= access.scopes:
        raise ForbiddenError("A key can change keys that allow no more than itself.")
    return key
