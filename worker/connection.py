"""One HTTP connection to a checked address, whatever the host's name means by then, that ends in time."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from service.shared.addresses import is_public

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class AddressError(Exception):
    """A host has no address, or none that may be connected to. `retryable`: that may change."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


def addresses(host: str, port: int) -> list[str]:
    """The addresses of a host, at least one.

    Raises:
        AddressError: if it has none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise AddressError(f"{host} has no address.", retryable=True) from error
    if not found:
        raise AddressError(f"{host} has no address.", retryable=True)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def any_address(host: str, port: int) -> str:
    """An address of a host that is trusted.

    Raises:
        AddressError: if it has none.
    """
    return addresses(host, port)[0]


def public_address(host: str, port: int) -> str:
    """The address of a host, all of whose addresses are public.

    Raises:
        AddressError: if it has none, or one that is not: this network is nobody's to look around in.
    """
    found = addresses(host, port)
    if not all(map(is_public, found)):
        raise AddressError(f"{host} has an address that is not public.")
    return found[0]


def address_within(seconds: float, resolve: Callable[[str, int], str], host: str, port: int) -> str:
    """What `resolve` answers; the system's resolver has no limit of its own that could be set.

    Raises:
        TimeoutError: if that takes longer; the question is left to itself.
        AddressError: as `resolve`.
    """
    answer: Future[str] = Future()

    def ask() -> None:
        try:
            answer.set_result(resolve(host, port))
        except BaseException as error:  # noqa: BLE001 - raised where it was asked
            answer.set_exception(error)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    return answer.result(seconds)


class PinnedConnection(http.client.HTTPConnection):
    """Connects to one address; over TLS, with a `context`, it checks the certificate for the host's name."""

    def __init__(
        self, host: str, port: int, address: str, timeout_s: float, context: ssl.SSLContext | None = None
    ) -> None:
        """`timeout_s`: of each operation; `within` bounds all together."""
        super().__init__(host, port, timeout=timeout_s)
        self.default_port = http.client.HTTP_PORT if context is None else http.client.HTTPS_PORT  # for the Host header
        self._address = address
        self._tls = context
        self._socket: socket.socket | None = None
        self.is_severed = False

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Break the connection after so long, and close it in the end.

        A server that sends a byte now and then keeps no read from returning: only this ends it.
        """
        watchdog = threading.Timer(seconds, self._sever)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()
            self.close()

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        # Kept: once a response is the last one, the connection gives its socket away.
        self.sock = self._socket = plain
        if self._tls is not None:
            secure = self._tls.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = self._socket = secure
            self.check()
            secure.do_handshake()
        self.check()

    def check(self) -> None:
        """Raise TimeoutError if the connection was severed, also while there was no socket to break yet."""
        if self.is_severed:
            raise TimeoutError("out of time")

    def _sever(self) -> None:
        self.is_severed = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # below TLS, which another thread is reading
