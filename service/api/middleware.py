"""Around every request: its id, its log line, its time, its span, and the last net under unexpected exceptions."""

import re
from time import perf_counter
from typing import Any

import structlog
from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import internal_error
from service.api.exposition import Exposition
from service.shared import tracing
from service.shared.ids import new_id

log = structlog.get_logger(__name__)
# Asked by machines every few seconds.
UNTRACED = frozenset({"/livez", "/readyz", "/metrics"})
# For browsers that are led to an answer: it is shown as nothing but what it says it is, loads and runs nothing, stands
# in no frame, and is no part of another site's page. Pages that need more say so themselves.
SAFETY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
DEFAULT_HEADERS = SAFETY_HEADERS | {"Cache-Control": "no-store"}  # else caches would choose a lifetime themselves
_RAW_DEFAULTS = [(name.lower().encode(), value.encode()) for name, value in DEFAULT_HEADERS.items()]
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestContext:
    """Gives each request an id (the client's, if it is harmless) and a problem instead of a broken connection."""

    def __init__(self, app: ASGIApp, *, exposition: Exposition) -> None:
        self._app = app
        self._exposition = exposition

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if GIVEN_ID.fullmatch(given) else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            if scope["path"].removeprefix("/v1") in UNTRACED:
                await self._answer(scope, receive, send, request_id)
                return
            parent = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
            with tracing.span(scope["method"], parent=parent, kind="server", request_id=request_id):
                await self._answer(scope, receive, send, request_id)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started_at = perf_counter()
        status = sent_bytes = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = int(message["status"])
                headers = message["headers"]
                given = {name.lower() for name, _ in headers}
                headers.append((b"x-request-id", request_id.encode()))
                headers += [default for default in _RAW_DEFAULTS if default[0] not in given]
            sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            if status:
                raise  # too late for another answer: the server must break the connection
            await internal_error(Request(scope))(scope, receive, send_with_id)
        finally:
            self._note(scope, status, sent_bytes, perf_counter() - started_at)

    def _note(self, scope: Scope, status: int, sent_bytes: int, took_s: float) -> None:
        method = scope["method"]
        route = getattr(scope.get("route"), "path", None)
        self._exposition.note_request(method, route, status, took_s)
        access = scope["state"].get("access")
        facts: dict[str, Any] = {} if access is None else access.named()
        facts |= {"method": method, "path": scope["path"], "route": route, "status": status, "bytes": sent_bytes}
        log.info("request", took_s=round(took_s, 4), client=(scope.get("client") or ("", 0))[0], **facts)
        tracing.note(
            name=method if route is None else f"{method} {route}",
            failed=f"status {status}" if status >= 500 else None,
            http__request__method=method,
            http__route=route,
            http__response__status_code=status,
            url__path=scope["path"],
        )
