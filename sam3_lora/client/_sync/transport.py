# Made from `_async` by `make generate`: change it there.
"""Requests to the service: its key, repeats of what is safe, faults as errors, files that go on where they were."""

from __future__ import annotations

import base64
import hashlib
import re
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx

from sam3_lora.client._patience import Patience, in_thread, is_passing, wanted_delay
from sam3_lora.client.errors import ApiError, ConnectionFailedError, IntegrityError, LocalFileError, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECT_TIMEOUT_S = 10.0
CHUNK_BYTES = 2**18
NOT_YET, PARTIAL, UNSATISFIABLE = 202, 206, 416
MADE_POLL_S = 1.0
DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/=]{44}):")


class Transport:
    """Speaks to one service. Every request that it makes may be repeated: one that creates carries a key for that."""

    def __init__(
        self, base_url: str, *, api_key: str | None, timeout_s: float, retry_for_s: float, agent: str, **options: Any
    ) -> None:
        headers = {"User-Agent": agent} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._retry_for_s = retry_for_s
        self._http = httpx.Client(headers=headers, timeout=timeout, **options)

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def patience(self) -> Patience:
        """For something that is tried again."""
        return Patience(self._retry_for_s)

    def json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """The JSON object that answers a request."""
        answer: dict[str, Any] = (self.request(method, path, **request)).json()
        return answer

    def request(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, **request: Any
    ) -> httpx.Response:
        """Ask, and ask again while that may help.

        Args:
            path: with or without `/v1`, as the service's own answers give it.
            request: what `httpx.AsyncClient.request` takes.

        Raises:
            ConnectionFailedError: if there is no answer.
            ApiError: if the answer is a refusal.
        """
        sent = dict(headers or {})
        if method == "POST":
            sent.setdefault("Idempotency-Key", uuid4().hex)
        patience = self.patience()
        while True:
            try:
                response = self._http.request(method, self._url(path), headers=sent, **request)
            except httpx.TransportError as error:
                self.pause(patience, error)
                continue
            if response.is_error:
                self.pause(patience, error_of(response))
                continue
            return response

    @contextmanager
    def stream(self, path: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """An answer whose body is read bit by bit; asked for once.

        Raises:
            ApiError: if the answer is a refusal.
        """
        with self._http.stream("GET", self._url(path), headers=headers) as response:
            if response.is_error and response.status_code != UNSATISFIABLE:
                response.read()
                raise error_of(response)
            yield response

    def pause(self, patience: Patience, error: httpx.TransportError | ApiError) -> None:
        """Wait before another attempt.

        Raises:
            ConnectionFailedError, ApiError: if there should be none.
        """
        if isinstance(error, httpx.TransportError):
            delay = patience.next_delay()
            if delay is None:
                told = f"{type(error).__name__}: {error}".rstrip(": ")
                raise ConnectionFailedError(f"{self.base_url} does not answer ({told})") from error
        else:
            delay = patience.next_delay(wanted_delay(error.response)) if is_passing(error.response) else None
            if delay is None:
                raise error
        sleep(delay)

    def download(
        self,
        path: str,
        target: Path,
        *,
        sha256: str | None = None,
        on_progress: Callable[[int, int | None], object] = lambda done, total: None,
    ) -> Path:
        """Fetch a file. It appears under its name once it is whole and its hash is right.

        Until then it grows beside it, as `.part`, and goes on there: after a lost connection, and if its hash is given,
        also in another process.

        One that the server is still making (202) is waited for.

        Args:
            sha256: what it must have; else what the server tells.
            on_progress: called with bytes that are there, and of all of them.

        Raises:
            IntegrityError: if it arrived with another hash.
            LocalFileError: if it cannot be written.
        """
        part = target.with_name(f"{target.name}.part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            if sha256 is None:
                part.unlink(missing_ok=True)
            told = self._fetch(path, part, None if sha256 is None else f'"{sha256}"', on_progress)
            expected = sha256 or told
            if expected is not None and in_thread(_sha256_of, part) != expected:
                part.unlink()
                raise IntegrityError(f"{target.name} arrived damaged: its SHA-256 is not {expected}")
            part.replace(target)
        except OSError as error:
            raise LocalFileError(f"{target} cannot be written: {error.strerror or error}") from error
        return target

    def _fetch(
        self, path: str, part: Path, tag: str | None, on_progress: Callable[[int, int | None], object]
    ) -> str | None:
        """Fetch what is missing of a file; the hash that the server tells."""
        patience = self.patience()
        while True:
            there = part.stat().st_size if part.exists() else 0
            headers = {"Range": f"bytes={there}-", "If-Range": tag} if there and tag else {}
            try:
                with self.stream(path, headers) as response:
                    told = DIGEST.match(response.headers.get("repr-digest", ""))
                    if response.status_code == UNSATISFIABLE:  # it was whole already, or is no part of this file
                        if response.headers.get("content-range", "").rpartition("/")[2] == str(there):
                            return None
                        part.unlink()
                        continue
                    if response.status_code == NOT_YET:
                        patience.reset()
                        sleep(wanted_delay(response) or MADE_POLL_S)
                        continue
                    tag = response.headers.get("etag", tag)
                    is_rest = response.status_code == PARTIAL
                    length = response.headers.get("content-length")
                    done = there if is_rest else 0
                    total = None if length is None else done + int(length)
                    with part.open("ab" if is_rest else "wb") as file:
                        for chunk in response.iter_bytes(CHUNK_BYTES):
                            file.write(chunk)
                            done += len(chunk)
                            patience.reset()
                            on_progress(done, total)
                    return None if told is None else base64.b64decode(told[1]).hex()
            except httpx.TransportError as error:
                self.pause(patience, error)
            except ApiError as error:
                self.pause(patience, error)

    def _url(self, path: str) -> str:
        return f"{self.base_url}/v1{path.removeprefix('/v1')}"


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
