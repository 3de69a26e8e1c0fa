"""Conditional and partial requests (RFC 9110, sections 13 and 14): entity tags, dates and byte ranges."""

import re
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import Annotated

from fastapi import Depends, Header

RANGE = re.compile(r"bytes\s*=\s*(\d*)\s*-\s*(\d*)", re.IGNORECASE)
TAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass(frozen=True)
class Conditions:
    """The headers of a request that say which bytes are wanted, and in which case."""

    range: Annotated[str | None, Header(examples=["bytes=1000-"], description="One range of bytes to send.")] = None
    if_range: Annotated[str | None, Header(description="Send the range only of this version, else all.")] = None
    if_match: Annotated[str | None, Header(description="Send only one of these versions, else 412.")] = None
    if_none_match: Annotated[str | None, Header(description="Send none of these versions, but 304.")] = None
    if_modified_since: Annotated[str | None, Header(description="304 unless it is newer than this.")] = None
    if_unmodified_since: Annotated[str | None, Header(description="412 if it is newer than this.")] = None


RequestConditions = Annotated[Conditions, Depends()]


@dataclass(frozen=True)
class Version:
    """What tells one version of a file from others: a strong entity tag, and when it came to be."""

    etag: str
    modified_at: datetime

    @property
    def last_modified(self) -> str:
        """`modified_at` as HTTP writes it, to the second."""
        return format_datetime(self.modified_at, usegmt=True)


@dataclass(frozen=True)
class ByteRange:
    """Bytes from `start` up to, without, `end`."""

    start: int
    end: int


class UnsatisfiableRangeError(Exception):
    """The range begins behind the end of the file."""


def names(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names this strong tag (or any, with `*`); weak prefixes are ignored."""
    if header is None:
        return False
    return header.strip() == "*" or etag in [tag.removeprefix("W/") for tag in TAG.findall(header)]


def forbids(conditions: Conditions, version: Version) -> bool:
    """Whether If-Match, or without it If-Unmodified-Since, wants another version: 412."""
    if conditions.if_match is not None:
        return conditions.if_match.strip() != "*" and version.etag not in TAG.findall(conditions.if_match)
    since = _date(conditions.if_unmodified_since)
    return since is not None and version.modified_at.replace(microsecond=0) > since


def has_already(conditions: Conditions, version: Version) -> bool:
    """Whether If-None-Match, or without it If-Modified-Since, says that the client has this version: 304."""
    if conditions.if_none_match is not None:
        return names(conditions.if_none_match, version.etag)
    since = _date(conditions.if_modified_since)
    return since is not None and version.modified_at.replace(microsecond=0) <= since


def requested_range(conditions: Conditions, version: Version, size: int) -> ByteRange | None:
    """The range to answer with, or None for the whole file.

    A header that is malformed, has several ranges, or whose If-Range names another version is ignored, as the
    standard allows.

    Raises:
        UnsatisfiableRangeError: if no byte of the file is in the range.
    """
    header, if_range = conditions.range, conditions.if_range
    match = RANGE.fullmatch(header.strip()) if header is not None else None
    if match is None or (if_range is not None and if_range.strip() not in (version.etag, version.last_modified)):
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


def _date(header: str | None) -> datetime | None:
    """The time a header names; None for what is no date, which the standard has ignored."""
    try:
        parsed = None if header is None else parsedate_to_datetime(header)
    except ValueError:
        return None
    return parsed if parsed is not None and parsed.tzinfo is not None else None
