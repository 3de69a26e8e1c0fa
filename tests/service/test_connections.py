"""Connections of whoever comes, before anything is known of them: heads are bounded, and nothing is taken for two."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from service.connections import MAX_HEAD_BYTES, Connection
from service.server import configured
from tests.service.conftest import add_job
from tests.stack import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.conftest import Api

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LAST = b"Connection: close\r\n\r\n"


@contextlib.contextmanager
def connected(api: Api) -> Iterator[socket.socket]:
    with socket.create_connection(api.address, timeout=20) as connection:
        yield connection


def rest(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def send_all(connection: socket.socket, piece: bytes, times: int, *, pause_s: float = 0) -> None:
    for _ in range(times):
        connection.sendall(piece)
        time.sleep(pause_s)


def ask(api: Api, request: bytes) -> bytes:
    with connected(api) as connection:
        connection.sendall(request)
        return rest(connection)


def assert_refused(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert b"content-type: application/problem+json" in head.lower()
    problem: dict[str, Any] = json.loads(body)
    assert (problem["status"], problem["code"], problem["error"]["code"]) == (status, code, code)
    assert f"x-request-id: {problem['request_id']}".encode() in head.lower()
    assert b"x-content-type-options: nosniff" in head.lower()


AMBIGUOUS = {
    "length and chunks": POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET + LAST,
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 1\r\n\r\n{}",
    "signed length": POST + b"Content-Length: +2\r\n\r\n{}",
    "negative length": POST + b"Content-Length: -2\r\n\r\n{}",
    "length of 30 digits": POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}",
    "chunked is not the last encoding": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "unknown encoding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunk of 18 digits": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 18 + b"\r\nx",
    "space before the colon": GET + b"X-A : b\r\n" + LAST,
    "folded header": GET + b"X-A: b\r\n c\r\n" + LAST,
    "bare carriage return": GET + b"X-Request-Id: a\rX-Evil: b\r\n" + LAST,
    "bare line feeds": GET.replace(b"\r\n", b"\n") + b"\n",
    "NUL in the path": b"GET /v1/jobs/\x00 HTTP/1.1\r\nHost: x\r\n" + LAST,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": b"CONNECT example.org:80 HTTP/1.1\r\nHost: x\r\n" + LAST,
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_refused(api: Api, case: str) -> None:
    answer = ask(api, AMBIGUOUS[case])
    assert_refused(answer, 400, "malformed_request")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert api.client.get("/livez").status_code == 200


def test_a_trailer_is_no_header(api: Api) -> None:
    chunks = b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\n{}\r\n0\r\nX-Request-Id: smuggled\r\n\r\n"
    answer = ask(api, POST + chunks)
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"smuggled" not in answer
    assert b"as-a-header" in ask(api, GET + b"X-Request-Id: as-a-header\r\n" + LAST)


HEADS = {
    "one header": GET + b"X-A: " + b"a" * MAX_HEAD_BYTES + b"\r\n" + LAST,
    "many headers": GET + b"X-A: b\r\n" * 20_000 + LAST,
    "query": b"GET /v1/jobs?tag=" + b"a" * (MAX_HEAD_BYTES - 500) + b" HTTP/1.1\r\nX-A: " + b"a" * 600 + b"\r\n" + LAST,
}


@pytest.mark.parametrize("case", HEADS)
def test_a_head_over_the_limit_is_refused(api: Api, case: str) -> None:
    assert_refused(ask(api, HEADS[case]), 431, "headers_too_large")


def test_a_head_below_the_limit_is_read(api: Api) -> None:
    assert ask(api, GET + b"X-A: " + b"a" * (MAX_HEAD_BYTES - 1000) + b"\r\n" + LAST).startswith(b"HTTP/1.1 200 ")


ENDLESS = {
    "header": GET + b"X-A: ",
    "trailer": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-A: ",
    "chunk extension": POST + b"Transfer-Encoding: chunked\r\n\r\n2;",
}


@pytest.mark.parametrize("case", ENDLESS)
def test_what_never_ends_is_cut_off_in_little_memory(api: Api, case: str) -> None:
    before = psutil.Process().memory_info().rss
    with connected(api) as connection:
        connection.sendall(ENDLESS[case])
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_all(connection, b"a" * 2**20, 256)
    assert psutil.Process().memory_info().rss - before < 64 * 2**20


def test_requests_are_not_piled_up(api: Api) -> None:
    with connected(api) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
        send_all(connection, (GET + b"\r\n") * 1000, 200)


def test_a_few_requests_at_once_are_answered_in_turn(api: Api) -> None:
    assert ask(api, (GET + b"\r\n") * 8 + GET + LAST).count(b"HTTP/1.1 200 ") == 9


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "head_timeout_s", 0.5)


STALLS = {"nothing": b"", "part of a head": GET + b"X-A", "empty lines": b"\r\n"}


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("case", STALLS)
def test_who_does_not_finish_a_head_is_left(api: Api, case: str) -> None:
    started = time.monotonic()
    assert ask(api, STALLS[case]) == b""
    assert time.monotonic() - started < 3


@pytest.mark.usefixtures("hurried")
def test_who_trickles_a_head_is_left(api: Api) -> None:
    with connected(api) as connection:
        connection.sendall(GET + b"X-A: ")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_all(connection, b"a", 50, pause_s=0.1)


@pytest.mark.usefixtures("hurried")
def test_an_answer_that_takes_longer_arrives_whatever_came_meanwhile(api: Api) -> None:
    job = add_job(api.database)
    request = f"GET /v1/jobs/{job} HTTP/1.1\r\nHost: x\r\nPrefer: wait=2\r\nConnection: close\r\n\r\n\r\n".encode()
    started = time.monotonic()
    assert ask(api, request).startswith(b"HTTP/1.1 200 ")
    assert time.monotonic() - started > 1.5


def test_a_json_body_that_stalls_or_trickles_is_dropped(api: Api) -> None:
    for pause_s in (30.0, 0.2):
        with connected(api) as connection:
            connection.sendall(POST + b"Content-Length: 100\r\nConnection: close\r\n\r\n{")
            connection.settimeout(pause_s)
            answer = b""
            started = time.monotonic()
            while not answer and time.monotonic() - started < 10:
                with contextlib.suppress(TimeoutError):
                    answer = rest(connection)
                if not answer:
                    connection.sendall(b" ")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer


def test_a_json_body_that_breaks_off_is_the_clients_fault(api: Api) -> None:
    before = counted(api, "400")
    with connected(api) as connection:
        connection.sendall(POST + b"Content-Length: 100\r\n\r\n{")
    wait_until(lambda: counted(api, "400") == before + 1, 5)
    assert counted(api, "500") == 0


def counted(api: Api, status: str) -> int:
    """Requests to create a job that were answered so."""
    wanted = f'sam3_http_request_duration_seconds_count{{method="POST",route="/jobs",status="{status}"}} '
    lines = api.client.get("/metrics").text.splitlines()
    return sum(round(float(line.removeprefix(wanted))) for line in lines if line.startswith(wanted))


def test_no_more_connections_than_allowed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api.client.get("/livez").status_code == 200  # its connection stays open
    monkeypatch.setitem(vars(api.app.state.services.settings), "max_connections", 3)  # it is frozen
    with connected(api) as first, connected(api), contextlib.ExitStack() as more:
        refused = [more.enter_context(connected(api)) for _ in range(5)]
        for connection in refused:
            answer = rest(connection)
            assert_refused(answer, 503, "too_many_connections")
            assert b"retry-after: 1\r\n" in answer.lower()
        first.sendall(GET + LAST)
        assert rest(first).startswith(b"HTTP/1.1 200 ")
        wait_until(lambda: ask(api, GET + LAST).startswith(b"HTTP/1.1 200 "), 5)
    assert api.client.get("/livez").status_code == 200


def test_every_server_of_the_application_is_set_up_so(api: Api) -> None:
    config = configured(api.app)
    config.load()
    assert config.http_protocol_class is Connection
    assert config.ws_protocol_class is None
