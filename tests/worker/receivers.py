"""Receivers of webhooks that behave well, or not."""

from __future__ import annotations

import contextlib
import functools
import http.server
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = "hooks.example.org"


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A running server that remembers what it was sent."""

    port: int
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}/hook?a=1"


@functools.cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS of a server with a certificate for HOST, and of a client that trusts it."""
    authority = trustme.CA()
    serving, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(HOST).configure_cert(serving)
    authority.configure_trust(client)
    return serving, client


def answer(handler: http.server.BaseHTTPRequestHandler, status: int = 204, body: bytes = b"", **headers: str) -> None:
    """Send a complete answer; `_` in names of headers stands for `-`."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextlib.contextmanager
def receiving(
    behave: Callable[[http.server.BaseHTTPRequestHandler], None] = answer, *, tls: bool = True
) -> Iterator[Receiver]:
    """A receiver on this machine, over TLS one that calls itself HOST."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append(Request(self.path, dict(self.headers.items()), body))
            with contextlib.suppress(OSError):
                behave(self)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = False  # closing waits for them
        request_queue_size = 64

        def handle_error(self, *_: object) -> None:
            pass  # a client that distrusts our certificate

    server = Server(("127.0.0.1", 0), Handler)
    receiver = Receiver(server.socket.getsockname()[1])
    if tls:
        server.socket = contexts()[0].wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
