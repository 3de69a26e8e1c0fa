"""Streaming a multipart form with one file to a staging file: bounded, hashed on the way."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread
from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.api.incoming import FLUSH_BYTES, body_chunks, staging_file
from service.shared.db.models.base import UNSTORABLE
from service.shared.errors import (
    MalformedRequestError,
    PayloadTooLargeError,
    ServiceError,
    UnsupportedMediaTypeError,
    invalid,
)

MAX_FIELD_BYTES = 4096
MAX_PARTS = 8
MAX_REPEATED = 16
MAX_FILENAME = 200
# Room for boundaries, part headers and text fields beside the file.
OVERHEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class FormFile:
    """A file that arrived complete, and the other parts of the form: `repeated` are those that may come again."""

    path: Path
    filename: str
    sha256: str
    fields: dict[str, str]
    repeated: dict[str, list[str]]


@asynccontextmanager
async def receive_form(
    request: Request,
    staging_dir: Path,
    *,
    known_fields: frozenset[str],
    max_bytes: int,
    idle_timeout_s: float,
    repeatable: frozenset[str] = frozenset(),
    file_part: str = "file",
) -> AsyncIterator[FormFile]:
    """Receive a form of one part `file_part` and optional text fields; the file is deleted on leaving.

    Fields that are `repeatable` may come up to `MAX_REPEATED` times.

    Raises:
        UnsupportedMediaTypeError, MalformedRequestError, InvalidRequestError, PayloadTooLargeError,
        RequestTimeoutError, StorageFullError: each names what is wrong.
    """
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type != b"multipart/form-data":
        raise UnsupportedMediaTypeError(
            f"Send a form as multipart/form-data with the file in a part named {file_part!r}."
        )
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:  # RFC 2046, section 5.1.1
        raise MalformedRequestError("The multipart boundary is missing or too long.")
    too_large = PayloadTooLargeError(f"The file is larger than {max_bytes} bytes.")
    if int(request.headers.get("content-length", "0")) > max_bytes + OVERHEAD_BYTES:
        raise too_large
    async with staging_file(staging_dir) as (path, file):
        form = _Form(boundary, file, known_fields, repeatable, max_bytes, too_large, file_part)
        received = 0
        async for chunk in body_chunks(request, idle_timeout_s=idle_timeout_s):
            received += len(chunk)
            if received > max_bytes + OVERHEAD_BYTES:
                raise too_large
            form.feed(chunk)
            if len(form.pending) >= FLUSH_BYTES:
                await to_thread.run_sync(form.flush)
        form.close()
        await to_thread.run_sync(form.flush)
        yield form.file(path)


def plain_filename(name: str) -> str:
    """The last part of what a client calls the file: some send a whole path."""
    return name.replace("\\", "/").rpartition("/")[2][:MAX_FILENAME] or "archive"


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    header_name: bytearray = field(default_factory=bytearray)
    header_value: bytearray = field(default_factory=bytearray)
    name: str = ""
    text: bytearray = field(default_factory=bytearray)


class _Form:
    """Follows the parser through the form."""

    def __init__(
        self,
        boundary: bytes,
        file: BinaryIO,
        known_fields: frozenset[str],
        repeatable: frozenset[str],
        max_bytes: int,
        too_large: ServiceError,
        file_part: str,
    ) -> None:
        self._file_part = file_part
        self._max_bytes = max_bytes
        self._too_large = too_large
        self.pending = bytearray()
        self._file = file
        self._known_fields = known_fields | repeatable
        self._repeated: dict[str, list[str]] = {name: [] for name in repeatable}
        self._max_parts = MAX_PARTS + MAX_REPEATED * len(repeatable)
        self._filename: str | None = None
        self._size_bytes = 0
        self._digest = hashlib.sha256()
        self._fields: dict[str, str] = {}
        self._part = _Part()
        self._parts = 0
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise MalformedRequestError(f"The form is not valid multipart/form-data: {error}") from None

    def close(self) -> None:
        if not self._complete:
            raise MalformedRequestError("The form ends before its closing boundary: the upload was cut off.")
        if self._filename is None:
            missing = f"the form has no part named {self._file_part!r} with a file name"
            raise invalid(f"/{self._file_part}", "missing", missing)

    def flush(self) -> None:
        self._digest.update(self.pending)
        self._file.write(self.pending)
        self.pending.clear()
        if self._complete:
            self._file.flush()

    def file(self, path: Path) -> FormFile:
        return FormFile(path, self._filename or "", self._digest.hexdigest(), self._fields, self._repeated)

    def _begin_part(self) -> None:
        self._part = _Part()
        self._parts += 1
        if self._parts > self._max_parts:
            raise MalformedRequestError(f"The form has more than {self._max_parts} parts.")

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header_name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.header_value += data[start:end]

    def _end_header(self) -> None:
        part = self._part
        part.headers[bytes(part.header_name).lower()] = bytes(part.header_value)
        part.header_name.clear()
        part.header_value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition", b""))
        name = _text(options.get(b"name", b""), "/")
        self._part.name = name
        if name == self._file_part:
            if self._filename is not None:
                raise invalid(f"/{name}", "duplicate", f"the form has two parts named {name!r}")
            self._filename = plain_filename(_text(options.get(b"filename", b""), f"/{name}"))
        elif name not in self._known_fields:
            known = ", ".join([self._file_part, *sorted(self._known_fields)])
            raise invalid(f"/{name[:100]}", "extra_forbidden", f"unknown part; known: {known}")
        elif name in self._fields:
            raise invalid(f"/{name}", "duplicate", "the part appears twice")
        elif len(self._repeated.get(name, ())) >= MAX_REPEATED:
            raise invalid(f"/{name}", "too_long", f"the part appears more than {MAX_REPEATED} times")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == self._file_part:
            self._size_bytes += end - start
            if self._size_bytes > self._max_bytes:
                raise self._too_large
            self.pending += data[start:end]
        else:
            self._part.text += data[start:end]
            if len(self._part.text) > MAX_FIELD_BYTES:
                raise invalid(f"/{self._part.name}", "too_long", f"longer than {MAX_FIELD_BYTES} bytes")

    def _end_part(self) -> None:
        name = self._part.name
        if name in self._repeated:
            self._repeated[name].append(_text(bytes(self._part.text), f"/{name}/{len(self._repeated[name])}"))
        elif name != self._file_part:
            self._fields[name] = _text(bytes(self._part.text), f"/{name}")

    def _end(self) -> None:
        self._complete = True


def _text(value: bytes, pointer: str) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(pointer, "invalid_text", "text is not UTF-8") from None
    if UNSTORABLE.search(text):
        raise invalid(pointer, "invalid_text", "text holds a NUL character")
    return text
