"""Fetch a file by https from anybody's host: one connection to a checked address, bounded, without redirects."""

from __future__ import annotations

import http.client
import ssl
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from worker.connection import AddressError, PinnedConnection, public_address
from worker.failures import SourceError, source_too_large

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHUNK_BYTES = 2**20
TRY_AGAIN = "Create the dataset again once the host answers, or upload the archive."
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
    try:
        address = (resolve or public_address)(host, port)
    except AddressError as error:
        if error.retryable:
            hint = "Check the host's name, then create the dataset again."
            raise SourceError("source_unavailable", str(error), hint, retryable=True) from error
        raise SourceError("source_refused", str(error), "Name a public host, or upload the archive.") from error
    connection = PinnedConnection(host, port, address, idle_timeout_s, context or ssl.create_default_context())
    try:
        with connection.within(timeout_s):
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"Accept-Encoding": "identity", "User-Agent": "sam3-service"})
            with connection.getresponse() as response:
                _receive(response, target, host, max_bytes, on_chunk)
    except (OSError, http.client.HTTPException, SourceError) as error:
        if connection.is_severed:
            hint = "Name a smaller file, or upload it; the operator sets the limit (SAM3_FETCH_TIMEOUT_S)."
            raise SourceError("source_unavailable", f"{host} took longer than {timeout_s:g} s.", hint) from error
        if isinstance(error, SourceError):
            raise
        reason = f"{type(error).__name__}: {error}"[:200]
        message = f"{host} could not be read ({reason})."
        raise SourceError("source_unavailable", message, TRY_AGAIN, retryable=True) from error


def _receive(
    response: http.client.HTTPResponse, target: Path, host: str, max_bytes: int, on_chunk: Callable[[], None]
) -> None:
    if response.status != http.HTTPStatus.OK:
        raise _of_status(response.status, host)
    too_large = source_too_large(f"The file is larger than {max_bytes} bytes.")
    expected = response.length
    if expected is None and not response.chunked:
        hint = "Name a file whose host sends its Content-Length, or upload it."
        raise SourceError("source_unavailable", f"{host} does not say where the file ends.", hint)
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
        message = f"{host} sent {received} of {expected} bytes."
        raise SourceError("source_unavailable", message, TRY_AGAIN, retryable=True)


def _of_status(status: int, host: str) -> SourceError:
    message = f"{host} answered with status {status}."
    if status in RETRYABLE:
        return SourceError("source_unavailable", message, TRY_AGAIN, retryable=True)
    if 300 <= status < 400:
        hint = "Give the final address: redirects are not followed."
    else:
        hint = "Check that the URI can be fetched without logging in, and has not expired."
    return SourceError("source_unavailable", message, hint)
