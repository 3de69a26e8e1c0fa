"""What will go away: said in the OpenAPI document and in each answer, and logged with who still uses it.

An operation is marked with one line: `@router.get("/old", **deprecated(Deprecation("GET /old", ...)))`. A parameter or
member of a body is declared with `deprecated=True`, and `OLD.note(request)` is called where it was given.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import Depends, Request
from starlette.datastructures import MutableHeaders

if TYPE_CHECKING:
    from datetime import date, datetime

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger(__name__)
USED = "deprecated"
MAX_SEEN = 10_000
HEADERS: dict[str, Any] = {
    "Deprecation": {"schema": {"type": "string"}, "description": "Since when, as `@` and a Unix time (RFC 9745)."},
    "Sunset": {"schema": {"type": "string"}, "description": "When it will be gone (RFC 8594), if that is decided."},
    "Link": {"schema": {"type": "string"}, "description": '`rel="deprecation"`: what to use instead.'},
}


@dataclass(frozen=True)
class Deprecation:
    """Something that clients should no longer use."""

    what: str
    since: datetime
    link: str
    """URL of what to use instead."""
    sunset: datetime | None = None

    def note(self, request: Request) -> None:
        """Say so in the answer to the request, and once a day of each key in the log."""
        state = request.scope["state"]
        state.setdefault(USED, []).append(self)
        use = (self.what, state["access"].key_id, request.app.state.services.clock.now().date())
        seen: set[tuple[str, str | None, date]] = request.app.state.__dict__.setdefault("deprecations_seen", set())
        if use not in seen:
            if len(seen) >= MAX_SEEN:
                seen.clear()
            seen.add(use)
            log.warning("deprecated_use", what=self.what, key_id=use[1])


def deprecated(deprecation: Deprecation) -> dict[str, Any]:
    """Arguments of a route that is deprecated as a whole."""

    async def note(request: Request) -> None:
        deprecation.note(request)

    return {"deprecated": True, "dependencies": [Depends(note)]}


class Deprecations:
    """Adds the headers of whatever deprecated a request has used, whichever answer it gets."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_notes(message: Message) -> None:
            if message["type"] == "http.response.start" and (used := scope["state"].get(USED)):
                headers = MutableHeaders(scope=message)
                headers["Deprecation"] = f"@{min(int(each.since.timestamp()) for each in used)}"
                sunsets = [each.sunset for each in used if each.sunset is not None]
                if sunsets:
                    headers["Sunset"] = format_datetime(min(sunsets), usegmt=True)
                for each in used:
                    headers.append("Link", f'<{each.link}>; rel="deprecation"; type="text/html"')
                    if each.sunset is not None:
                        headers.append("Link", f'<{each.link}>; rel="sunset"; type="text/html"')
            await send(message)

        await self._app(scope, receive, send_with_notes if scope["type"] == "http" else send)


def describe_headers(document: dict[str, Any]) -> None:
    """Add the headers to the operations of an OpenAPI document that are deprecated, or take something that is."""
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        if operation.get("deprecated") or any(each.get("deprecated") for each in operation.get("parameters", [])):
            for response in operation["responses"].values():
                response["headers"] = response.get("headers", {}) | HEADERS
