"""Fetch a file by https from anybody's host: one connection to a checked address, bounded, without redirects."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from worker.failures import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHUNK_BYTES = 2**20
# What older versions of `ipaddress` take for public, or what stands for addresses that are not.
NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        ("192.0.0.0/24", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96", "fec0::/10"),
    )
)
NAT64 = ipaddress.ip_network("64:ff9b::/96")
RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})


def download(
    uri: str,
    target: Path,
    *,
    max_bytes: int,
    idle_timeout_s: float,
    timeout_s: float,
    on_chunk: Callable[[], None],
    resolve: Callable[[str, int], str] | None = None,
    context: ssl.SSLContext | None = None,
) -> None:
    """Write what an https URI names to a new file.

    Args:
        timeout_s: of everything together; `idle_timeout_s` without a byte ends it, too.
        on_chunk: called after each mebibyte at the latest; what it raises passes through.
        resolve: the address to connect to; default `public_address`.

    Raises:
        SourceError: says what was wrong, and whether another try may help.
    """
    parts = urlsplit(uri)
    host, port = parts.hostname or "", parts.port or http.client.HTTPS_PORT
    address = (resolve or public_address)(host, port)
    connection = _PinnedConnection(host, port, address, idle_timeout_s, context or ssl.create_default_context())
    # A server that sends a byte now and then keeps no read from returning: only breaking the connection ends it.
    watchdog = threading.Timer(timeout_s, connection.sever)
    watchdog.daemon = True
    watchdog.start()
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept-Encoding": "identity", "User-Agent": "sam3-service"})
        with connection.getresponse() as response:
            _receive(response, target, host, max_bytes, on_chunk)
    except (OSError, http.client.HTTPException, SourceError) as error:
        if connection.is_severed:
            raise SourceError("source_unavailable", f"{host} took longer than {timeout_s:g} s.") from error
        if isinstance(error, SourceError):
            raise
        reason = f"{type(error).__name__}: {error}"[:200]
        raise SourceError("source_unavailable", f"{host} could not be read ({reason}).", retryable=True) from error
    finally:
        watchdog.cancel()
        connection.close()


def public_address(host: str, port: int) -> str:
    """The address of a host, all of whose addresses are public.

    Raises:
        SourceError: if it has none, or one that is not: this network is nobody's to look around in.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceError("source_unavailable", f"{host} has no address.", retryable=True) from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not addresses or not all(map(is_public, addresses)):
        raise SourceError("source_refused", f"{host} has an address that is not public.")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address, and any that it stands for, belongs to the public network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if any(ip in network for network in NOT_PUBLIC if network.version == ip.version):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inner = ipaddress.IPv4Address(ip.packed[-4:])
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class _PinnedConnection(http.client.HTTPSConnection):
    """Connects to one address, whatever the name means by then, and checks the certificate for the name."""

    def __init__(self, host: str, port: int, address: str, timeout_s: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout_s, context=context)
        self._address = address
        self._tls = context
        self._socket: ssl.SSLSocket | None = None
        self.is_severed = False

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        # Kept: once a response is the last one, the connection gives its socket away.
        self.sock = self._socket = self._tls.wrap_socket(
            plain, server_hostname=self.host, do_handshake_on_connect=False
        )
        self._socket.do_handshake()

    def sever(self) -> None:
        self.is_severed = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # below TLS, which another thread is reading


def _receive(
    response: http.client.HTTPResponse, target: Path, host: str, max_bytes: int, on_chunk: Callable[[], None]
) -> None:
    if response.status != http.HTTPStatus.OK:
        hint = " (redirects are not followed: give the final address)" if 300 <= response.status < 400 else ""
        message = f"{host} answered with status {response.status}{hint}."
        raise SourceError("source_unavailable", message, retryable=response.status in RETRYABLE)
    too_large = SourceError("source_too_large", f"The file is larger than {max_bytes} bytes.")
    expected = response.length
    if expected is None and not response.chunked:
        raise SourceError("source_unavailable", f"{host} does not say where the file ends.")
    if expected is not None and expected > max_bytes:
        raise too_large
    received, called_at = 0, 0.0
    with target.open("xb") as file:
        while chunk := response.read1(CHUNK_BYTES):
            received += len(chunk)
            if received > max_bytes:
                raise too_large
            file.write(chunk)
            if time.monotonic() - called_at > 1:
                called_at = time.monotonic()
                on_chunk()
    if expected is not None and received != expected:
        raise SourceError("source_unavailable", f"{host} sent {received} of {expected} bytes.", retryable=True)
