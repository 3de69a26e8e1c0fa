"""Request bodies of any size on their way to a staging file: bounded in time, hashed, gone if anything goes wrong."""

import base64
import errno
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import anyio
from anyio import to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from service.shared.errors import (
    InvalidRequestError,
    MalformedRequestError,
    RequestTimeoutError,
    StorageFullError,
    invalid,
)
from service.shared.ids import new_id

FLUSH_BYTES = 2**20
# RFC 9530: a dictionary of byte sequences; algorithms other than those checked here are refused, not ignored.
DIGEST = re.compile(r"([a-z0-9-]+)=:([A-Za-z0-9+/]{22,88}={0,2}):")
HASHES = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}


@asynccontextmanager
async def staging_file(folder: Path) -> AsyncIterator[tuple[Path, BinaryIO]]:
    """A new file to write to, deleted on leaving.

    Raises:
        StorageFullError: if the disk fills up while it is written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / new_id("req")
    try:
        with path.open("xb") as file:
            yield path, file
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError("No space is left for uploads: delete datasets or enlarge the disk.") from error
        raise
    finally:
        await to_thread.run_sync(path.unlink, True)


async def body_chunks(request: Request, *, idle_timeout_s: float) -> AsyncIterator[bytes]:
    """The body as it arrives.

    Raises:
        RequestTimeoutError: if nothing comes for `idle_timeout_s`.
        MalformedRequestError: if the connection breaks.
    """
    stream = request.stream().__aiter__()
    while True:
        try:
            with anyio.fail_after(idle_timeout_s):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise RequestTimeoutError(f"The upload stalled for {idle_timeout_s:g} seconds.") from None
        except ClientDisconnect:
            raise MalformedRequestError("The connection broke before the upload was complete.") from None
        if chunk is None:
            return
        yield chunk


@asynccontextmanager
async def receive_bytes(
    request: Request, folder: Path, *, size_bytes: int, idle_timeout_s: float
) -> AsyncIterator[Path]:
    """Receive a body of exactly `size_bytes` whose Content-Digest and Content-MD5, if sent, are right.

    The file is deleted on leaving.

    Raises:
        InvalidRequestError, MalformedRequestError, RequestTimeoutError, StorageFullError: each names what is wrong.
    """
    announced = request.headers.get("content-length")
    if announced is not None and int(announced) != size_bytes:
        raise _wrong_length(announced, size_bytes)
    digests = _expected_digests(request)
    async with staging_file(folder) as (path, file):
        pending, received = bytearray(), 0

        def flush() -> None:
            for each in digests:
                each.found.update(pending)
            file.write(pending)
            file.flush()
            pending.clear()

        async for chunk in body_chunks(request, idle_timeout_s=idle_timeout_s):
            received += len(chunk)
            if received > size_bytes:
                raise _wrong_length(f"more than {size_bytes}", size_bytes)
            pending += chunk
            if len(pending) >= FLUSH_BYTES:
                await to_thread.run_sync(flush)
        await to_thread.run_sync(flush)
        if received != size_bytes:
            raise _wrong_length(received, size_bytes)
        for each in digests:
            if each.found.digest() != each.expected:
                raise invalid(f"/header/{each.header}", "digest_mismatch", "the bytes that arrived have another digest")
        yield path


@dataclass(frozen=True)
class _Digest:
    """What a header says of the body, and what is found as it arrives."""

    header: str
    found: "hashlib._Hash"
    expected: bytes


def _expected_digests(request: Request) -> list[_Digest]:
    """Every digest that was sent.

    Raises:
        InvalidRequestError: if a header cannot be read or names an algorithm that is not checked.
    """
    digests = []
    md5 = request.headers.get("content-md5")
    if md5 is not None:
        digests.append(_digest("Content-MD5", hashlib.md5(usedforsecurity=False), md5))
    header = request.headers.get("content-digest")
    for entry in header.split(",") if header is not None else []:
        match = DIGEST.fullmatch(entry.strip())
        if match is None or match[1] not in HASHES:
            raise invalid("/header/Content-Digest", "invalid_digest", "give sha-256=:Base64: or sha-512=:Base64:")
        digests.append(_digest("Content-Digest", HASHES[match[1]](), match[2]))
    return digests


def _digest(header: str, found: "hashlib._Hash", text: str) -> _Digest:
    try:
        expected = base64.b64decode(text, validate=True)
    except ValueError:
        expected = b""
    if len(expected) != found.digest_size:
        raise invalid(f"/header/{header}", "invalid_digest", f"not the Base64 of {found.digest_size} bytes")
    return _Digest(header, found, expected)


def _wrong_length(found: object, expected: int) -> InvalidRequestError:
    return invalid("", "wrong_length", f"the body has {found} bytes, but this part has {expected}")
