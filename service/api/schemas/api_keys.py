"""API keys as clients make and see them."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from sam3_lora.config import Section
from service.api.schemas.jobs import Project
from service.api.schemas.lists import Read
from service.shared.db.models import ApiKey
from service.usecases.access import Access, NewKey, Scope

YEAR_S = 365 * 86400


class ApiKeyCreate(Section):
    """A key for a program or a person."""

    name: Annotated[str, Field(min_length=1, max_length=200, examples=["ci"])]
    """Who or what uses it."""
    project: Project | None = None
    """The project that it is for; null: that of the key which makes it; with the scope `admin`: all."""
    scopes: list[Annotated[Scope, Field(strict=False)]] = Field(
        [Scope.READ, Scope.WRITE], min_length=1, max_length=len(Scope)
    )
    """read: see everything of the project; write: create, change and delete (includes read and predict); predict: ask
    models; keys: manage the project's keys; admin: everything in all projects."""
    expires_in_s: int | None = Field(None, ge=60, le=10 * YEAR_S)
    """Seconds after which it ends; null: never."""


class ApiKeyRotate(Section):
    """How to change the secret."""

    grace_s: int = Field(86400, ge=0, le=30 * 86400)
    """Seconds that the present secret goes on."""


class ApiKeyRead(Read):
    """An API key; its secret is told once, when it is made."""

    id: str
    """Opaque."""
    object: Literal["api_key"] = "api_key"
    name: str
    """Who or what uses it."""
    project: str | None
    """null: all projects."""
    scopes: list[Scope]
    """What it allows."""
    hint: str
    """The last characters of the secret."""
    created_at: datetime
    """When it was made."""
    expires_at: datetime | None
    """When it ends by itself; null: never."""
    last_used_at: datetime | None
    """To the minute or so."""
    revoked_at: datetime | None
    """When it was revoked; null: it was not."""
    previous_expires_at: datetime | None
    """Until when the secret before the last rotation is taken."""


class ApiKeyCreated(ApiKeyRead):
    """A key with its secret."""

    secret: str = Field(examples=["sam3_..."])
    """Keep it: it is not told again."""


class Me(Read):
    """What this request may do."""

    object: Literal["access"] = "access"
    key_id: str | None
    """null: this server asks for no keys."""
    project: str | None
    """null: all projects."""
    scopes: list[Scope]
    """What it allows."""


def api_key_read(key: ApiKey) -> ApiKeyRead:
    return ApiKeyRead(**_values(key))


def api_key_created(new: NewKey) -> ApiKeyCreated:
    return ApiKeyCreated(**_values(new.key), secret=new.secret)


def me(access: Access) -> Me:
    return Me(key_id=access.key_id, project=access.project, scopes=sorted(access.scopes))


def _values(key: ApiKey) -> dict[str, object]:
    names = ("id", "name", "project", "scopes", "hint", "created_at", "expires_at", "last_used_at", "revoked_at")
    return {name: getattr(key, name) for name in (*names, "previous_expires_at")}
