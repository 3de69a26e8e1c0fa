"""One client's connection, with bounds that uvicorn and its parser lack: their number, and size and time of heads."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import structlog
from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.errors import PROBLEM_JSON, problem_body
from service.api.middleware import DEFAULT_HEADERS
from service.shared.ids import new_id

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

log = structlog.get_logger(__name__)

MAX_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 20.0
MAX_PIPELINED = 64  # requests that wait for the answers to earlier ones of their connection


class Connection(HttpToolsProtocol):
    """HTTP/1.1 for whoever connects, before anything is known of them."""

    head_timeout_s = HEAD_TIMEOUT_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._in_head = True  # or before one
        self._undigested_bytes = 0
        self._has_advanced = False
        self._is_too_large = False
        self._timer: asyncio.TimerHandle | None = None
        self._limit_time()
        most = cast("Any", self.config.app).state.services.settings.max_connections
        if len(self.connections) > most:  # with this one
            log.warning("connection_refused", open=most)
            detail = f"This process keeps {most} connections open and no more: try again soon."
            self._refuse(503, "too_many_connections", "Service Unavailable", detail, {"Retry-After": "1"})

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_head and self._timer is None:  # also for bytes that begin no request: they end uvicorn's own timer
            self._limit_time()
        self._has_advanced = False
        super().data_received(data)
        self._undigested_bytes = 0 if self._has_advanced else self._undigested_bytes + len(data)
        # The parser keeps what it has of a head, or of the trailers after a body, however long they become.
        if self._undigested_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._is_too_large = True
            self.send_400_response("too large")
        elif len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer, which must not pass for a header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._has_advanced = True
        self._in_head = False
        self._end_timer()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._is_too_large = True
            raise HttpParserError("too large")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_advanced = True
        self._in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """A problem as from everywhere else, and the end of the connection."""
        status, code, title = 400, "malformed_request", "Bad Request"
        detail = "The request is not valid HTTP/1.1."
        if self._is_too_large:
            status, code, title = 431, "headers_too_large", "Request Header Fields Too Large"
            detail = f"Path and headers together are longer than {MAX_HEAD_BYTES} bytes."
        self._refuse(status, code, title, detail)

    def _refuse(
        self, status: int, code: str, title: str, detail: str, further: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        request_id = new_id("req")
        body = json.dumps(problem_body(status, code, title, detail, instance="", request_id=request_id)).encode()
        headers = DEFAULT_HEADERS | {
            "Content-Type": PROBLEM_JSON,
            "Content-Length": str(len(body)),
            "X-Request-Id": request_id,
            "Connection": "close",
            **further,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"HTTP/1.1 {status} {title}\r\n{head}\r\n".encode() + body)
        self.transport.close()

    def _limit_time(self) -> None:
        self._timer = self.loop.call_later(self.head_timeout_s, self._out_of_time)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _out_of_time(self) -> None:
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:  # an earlier request is still being answered
            self._limit_time()
        else:
            self.transport.close()
