"""Conditional and partial requests (RFC 9110): entity tags and byte ranges."""

import re
from dataclasses import dataclass

RANGE = re.compile(r"bytes\s*=\s*(\d*)\s*-\s*(\d*)", re.IGNORECASE)
TAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass(frozen=True)
class ByteRange:
    """Bytes from `start` up to, without, `end`."""

    start: int
    end: int


class UnsatisfiableRangeError(Exception):
    """The range begins behind the end of the file."""


def names(header: str | None, etag: str) -> bool:
    """Whether If-Match or If-None-Match names this strong tag (or any, with `*`); weak prefixes are ignored."""
    if header is None:
        return False
    return header.strip() == "*" or etag in [tag.removeprefix("W/") for tag in TAG.findall(header)]


def requested_range(header: str | None, if_range: str | None, etag: str, size: int) -> ByteRange | None:
    """The range to answer with, or None for the whole file.

    A header that is malformed, has several ranges, or whose If-Range names another version is ignored, as the
    standard allows.

    Raises:
        UnsatisfiableRangeError: if no byte of the file is in the range.
    """
    match = RANGE.fullmatch(header.strip()) if header is not None else None
    if match is None or (if_range is not None and if_range.strip() != etag):
        return None
    first, last = match.groups()
    if (not first and not last) or len(first) > 19 or len(last) > 19:
        return None
    if not first:
        start, end = max(0, size - int(last)), size
        if int(last) == 0:
            raise UnsatisfiableRangeError
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None
    if start >= size:
        raise UnsatisfiableRangeError
    return ByteRange(start, end)
