"""Keys, and where messages about jobs go."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.deps import ReadUnit, RequestAccess
from service.api.schemas.api_keys import api_key_read
from service.api.schemas.webhooks import endpoint_read
from service.pages.rendering import PageRoute, page_or_part
from service.shared.webhooks import EventType, MessageFormat
from service.usecases.access import Scope

router = APIRouter(prefix="/ui/access", route_class=PageRoute, include_in_schema=False)

ENDPOINTS_SHOWN = 100


@router.get("", name="page_access")
def show_access(request: Request, unit: ReadUnit, access: RequestAccess) -> Response:
    """Webhooks of the project and, to those who may make keys, its keys."""
    endpoints, _ = unit.webhooks.list(limit=ENDPOINTS_SHOWN, descending=True, after=None, before=None)
    sees_keys = access.allows(Scope.KEYS)
    return page_or_part(
        request,
        "access",
        endpoints=[endpoint_read(row) for row in endpoints],
        keys=[api_key_read(key) for key in unit.api_keys.list()] if sees_keys else [],
        sees_keys=sees_keys,
        scopes=[scope for scope in Scope if access.allows(scope)],
        events=list(EventType),
        formats=list(MessageFormat),
    )
