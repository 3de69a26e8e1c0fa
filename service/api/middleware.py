"""Around every request: its id, its log line, its time, and the last net under unexpected exceptions."""

import re
from time import perf_counter

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import internal_error
from service.api.exposition import Exposition
from service.shared.ids import new_id

log = structlog.get_logger(__name__)
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
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if GIVEN_ID.fullmatch(given) else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        started_at = perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers.setdefault("Cache-Control", "no-store")  # else caches would choose a lifetime themselves
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                if status:
                    raise  # too late for another answer: the server must break the connection
                await internal_error(Request(scope))(scope, receive, send_with_id)
            finally:
                took_s = perf_counter() - started_at
                route = getattr(scope.get("route"), "path", None)
                self._exposition.note_request(scope["method"], route, status, took_s)
                log.info("request", method=scope["method"], path=scope["path"], status=status, took_s=round(took_s, 4))
