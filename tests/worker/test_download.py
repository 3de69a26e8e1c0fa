from __future__ import annotations

import contextlib
import functools
import http.server
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from service.shared.addresses import is_public
from worker.connection import AddressError, public_address
from worker.download import download
from worker.failures import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOST = "data.example.org"
CONTENT = bytes(range(256)) * 9000


@functools.cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS of a server with a certificate for HOST, and of a client that trusts it."""
    authority = trustme.CA()
    serving, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(HOST).configure_cert(serving)
    authority.configure_trust(client)
    return serving, client


@contextlib.contextmanager
def https_server(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[dict[str, Any]]:
    """A server that calls itself HOST; yields what `download` needs to reach it, which a public name would not."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    serving, client = contexts()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = serving.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = False  # closing waits for them
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    port = server.socket.getsockname()[1]
    try:
        yield {"port": port, "resolve": lambda host, _: "127.0.0.1" if host == HOST else "127.0.0.2", "context": client}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fetch(target: Path, server: dict[str, Any], *, host: str = HOST, path: str = "/a.zip", **options: Any) -> None:
    values = {"max_bytes": 10**8, "idle_timeout_s": 5, "timeout_s": 30, "on_chunk": lambda: None}
    reach = {"resolve": server["resolve"], "context": server["context"]}
    download(f"https://{host}:{server['port']}{path}", target, **values | reach | options)


def refused(target: Path, server: dict[str, Any], **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        fetch(target, server, **options)
    assert caught.value.failure.hint
    return caught.value


def send(handler: http.server.BaseHTTPRequestHandler, content: bytes, *, length: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)
    handler.close_connection = True


def test_a_file_arrives_with_the_query_that_was_asked_for(tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append((handler.path, handler.headers["Host"]))
        send(handler, CONTENT)

    beats: list[int] = []
    with https_server(answer) as server:
        fetch(tmp_path / "a", server, path="/x/a.zip?sig=1&b=%20", on_chunk=lambda: beats.append(1))
        assert asked == [("/x/a.zip?sig=1&b=%20", f"{HOST}:{server['port']}")]
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert beats


def test_chunks_end_where_they_say(tmp_path: Path) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"5\r\nhello\r\n")
        if handler.path == "/whole":
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    with https_server(answer) as server:
        fetch(tmp_path / "a", server, path="/whole")
        assert (tmp_path / "a").read_bytes() == b"hello"
        assert refused(tmp_path / "b", server, path="/cut").failure.retryable


@pytest.mark.parametrize(
    ("status", "retryable", "text"),
    [(404, False, "404"), (301, False, "redirects are not followed"), (503, True, "503"), (206, False, "206")],
)
def test_other_answers_are_named(tmp_path: Path, status: int, retryable: bool, text: str) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Location", "https://127.0.0.1/internal")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with https_server(answer) as server:
        error = refused(tmp_path / "a", server)
    assert text in f"{error} {error.failure.hint}"
    assert error.failure.retryable is retryable


def test_a_file_that_ends_early_is_no_file(tmp_path: Path) -> None:
    with https_server(lambda handler: send(handler, b"x" * 10, length=20)) as server:
        error = refused(tmp_path / "a", server)
    assert error.failure.retryable
    assert "10 of 20 bytes" in str(error) or "IncompleteRead" in str(error)


def test_a_body_without_an_end_is_refused(tmp_path: Path) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"x")
        handler.close_connection = True

    with https_server(answer) as server:
        assert "where the file ends" in str(refused(tmp_path / "a", server))


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_over_the_cap_is_cut_off(tmp_path: Path, announced: bool) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if announced:
            send(handler, CONTENT)
            return
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")

    with https_server(answer) as server:
        error = refused(tmp_path / "a", server, max_bytes=100_000)
    assert (error.failure.code, error.failure.retryable) == ("source_too_large", False)
    assert not (tmp_path / "a").exists() or (tmp_path / "a").stat().st_size <= 100_000


def test_a_server_that_stalls_or_trickles_is_left(tmp_path: Path) -> None:
    over = threading.Event()

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path == "/body":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.send_header("Connection", "close")
            handler.end_headers()
        while handler.path != "/stall" and not over.wait(0.05):
            handler.wfile.write(b"H")
        over.wait(20)

    with https_server(answer) as server:
        assert "TimeoutError" in str(refused(tmp_path / "a", server, path="/stall", idle_timeout_s=0.3))
        for path in ("/head", "/body"):
            error = refused(tmp_path / path[1:], server, path=path, timeout_s=0.5)
            assert "took longer than 0.5 s" in str(error)
        over.set()


def test_the_certificate_must_be_the_hosts(tmp_path: Path) -> None:
    with https_server(lambda handler: send(handler, CONTENT)) as server:
        other = refused(tmp_path / "a", server, host="other.example.org", resolve=lambda *_: "127.0.0.1")
        unknown = refused(tmp_path / "b", server, context=ssl.create_default_context())
    assert "CERTIFICATE_VERIFY_FAILED" in str(other)
    assert "CERTIFICATE_VERIFY_FAILED" in str(unknown)


def test_what_goes_on_meanwhile_can_end_it(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyError("lease lost")

    with https_server(lambda handler: send(handler, CONTENT)) as server, pytest.raises(KeyError):
        fetch(tmp_path / "a", server, on_chunk=stop)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("255.255.255.255", "224.0.0.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1"),
        *("::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::"),
        *("64:ff9b:1::a00:1", "fec0::1", "192.0.0.8", "::7f00:1", "::ffff:0:7f00:1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


def test_a_host_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolves_to(*addresses: str) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    resolves_to("8.8.8.8", "8.8.4.4")
    assert public_address(HOST, 443) == "8.8.8.8"
    for addresses in (("8.8.8.8", "10.0.0.1"), ("169.254.169.254",)):
        resolves_to(*addresses)
        with pytest.raises(AddressError, match="not public"):
            public_address(HOST, 443)
    resolves_to()
    with pytest.raises(AddressError, match="no address"):
        public_address(HOST, 443)
    monkeypatch.undo()
    with pytest.raises(AddressError, match="no address"):
        public_address("nowhere.invalid", 443)
    with pytest.raises(AddressError):
        public_address("localhost", 443)
