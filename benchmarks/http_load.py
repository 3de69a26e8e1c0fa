"""Requests over kept-alive connections, as fast as they are answered: plain sockets, so that the client is no limit."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Load:
    """What a server answered, in so many seconds. Latencies in seconds, sorted."""

    seconds: float
    latencies_s: list[float]

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.seconds

    @property
    def p50_s(self) -> float:
        return median(self.latencies_s)

    @property
    def p99_s(self) -> float:
        return quantiles(self.latencies_s, n=100)[98]

    def __add__(self, other: Load) -> Load:
        return Load(self.seconds + other.seconds, sorted(self.latencies_s + other.latencies_s))

    def to_dict(self) -> dict[str, float]:
        return {
            "per_second": round(self.per_second, 1),
            "p50_ms": round(self.p50_s * 1e3, 2),
            "p99_ms": round(self.p99_s * 1e3, 2),
        }


def request(
    method: str,
    path: str,
    address: tuple[str, int],
    *,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> bytes:
    """The bytes of an HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address[0]}:{address[1]}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def drive(
    address: tuple[str, int], make: Callable[[int], bytes], *, status: int, connections: int, seconds: float
) -> Load:
    """Send requests over so many connections for so long.

    Args:
        make: the request with this number; numbers are never repeated.
        status: what every answer must have.

    Raises:
        RuntimeError: on any other answer.
    """
    latencies: list[list[float]] = [[] for _ in range(connections)]
    faults: list[str] = []
    start = threading.Barrier(connections)
    expected = f"HTTP/1.1 {status} ".encode()

    def work(number: int) -> None:
        with socket.create_connection(address) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            start.wait()
            deadline, count = time.perf_counter() + seconds, 0
            while (began := time.perf_counter()) < deadline:
                connection.sendall(make(number + count * connections))
                answer = _answer(connection)
                latencies[number].append(time.perf_counter() - began)
                count += 1
                if not answer.startswith(expected):
                    faults.append(answer[:2000].decode(errors="replace"))
                    return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise RuntimeError(faults[0])
    return Load(seconds, sorted(each for part in latencies for each in part))


def _answer(connection: socket.socket) -> bytes:
    """One whole answer: its head, and as much body as that announces."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    lower = head.lower()
    if b"\r\ntransfer-encoding: chunked" in lower:
        while not body.endswith(b"0\r\n\r\n"):
            body += _some(connection)
    elif (at := lower.find(b"\r\ncontent-length:")) >= 0:
        length = int(lower[at + 17 :].partition(b"\r\n")[0])
        while len(body) < length:
            body += _some(connection)
    return head + b"\r\n\r\n" + body


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise RuntimeError("the server closed the connection")
    return data
