"""Zip archives that are never written: every byte of one follows from the names, sizes and CRCs of its members.

Members are stored, not compressed, and dated 1980-01-01, so that an archive has one length and one hash for ever and
any part of it can be read by itself: downloads resume. Format: PKWARE APPNOTE 6.3.10, with zip64 above 4 GiB.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Reader = Callable[[str, int, int], Iterator[bytes]]
    """Yields the bytes of a member from a first position up to, without, a last one."""

CHUNK_BYTES = 2**20
LIMIT_32 = 0xFFFF_FFFF
VERSION, VERSION_64 = 20, 45
MADE_ON_UNIX = 3 << 8
UTF8_NAMES = 1 << 11
FIRST_OF_JANUARY_1980 = 0x21
READABLE_FILE = 0o100644 << 16


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    name: str
    size_bytes: int
    crc32: int


class ZipLayout:
    """Where each byte of the archive of these members, in this order, comes from."""

    def __init__(self, members: Sequence[Member]) -> None:
        size_bytes = sum(member.size_bytes + 2 * len(member.name.encode()) + 200 for member in members) + 200
        self._large = self._is_large(size_bytes)
        self._pieces: list[bytes | Member] = []
        directory, offset = b"", 0
        for member in members:
            header = self._local_header(member)
            directory += self._directory_entry(member, offset)
            self._pieces += [header, member]
            offset += len(header) + member.size_bytes
        end = self._end(len(members), len(directory), offset)
        self._pieces += [directory, end]
        self.size_bytes = offset + len(directory) + len(end)

    def read(self, start: int, end: int, read_member: Reader) -> Iterator[bytes]:
        """The bytes of the archive from `start` up to, without, `end`."""
        offset = 0
        for piece in self._pieces:
            length = piece.size_bytes if isinstance(piece, Member) else len(piece)
            first, last = max(start - offset, 0), min(end - offset, length)
            if first < last:
                if isinstance(piece, Member):
                    yield from read_member(piece.name, first, last)
                else:
                    yield piece[first:last]
            offset += length

    def sha256(self, read_member: Reader) -> str:
        """Hash of the whole archive."""
        digest = hashlib.sha256()
        for chunk in self.read(0, self.size_bytes, read_member):
            digest.update(chunk)
        return digest.hexdigest()

    @staticmethod
    def _is_large(size_bytes: int) -> bool:
        return size_bytes > LIMIT_32

    def _local_header(self, member: Member) -> bytes:
        size, extra = member.size_bytes, b""
        if self._large:
            extra = struct.pack("<HHQQ", 1, 16, size, size)
            size = LIMIT_32
        return b"PK\x03\x04" + self._common(member, size, len(extra)) + member.name.encode() + extra

    def _directory_entry(self, member: Member, offset: int) -> bytes:
        size, extra = member.size_bytes, b""
        if self._large:
            extra = struct.pack("<HHQQQ", 1, 24, size, size, offset)
            size = offset = LIMIT_32
        made_by = struct.pack("<H", MADE_ON_UNIX | self._version)
        places = struct.pack("<HHHII", 0, 0, 0, READABLE_FILE, offset)
        return b"PK\x01\x02" + made_by + self._common(member, size, len(extra)) + places + member.name.encode() + extra

    def _common(self, member: Member, size: int, extra: int) -> bytes:
        """The fields that a local header and an entry of the directory share."""
        stored, midnight = 0, 0
        return struct.pack(
            "<HHHHHIIIHH",
            *(self._version, UTF8_NAMES, stored, midnight, FIRST_OF_JANUARY_1980),
            *(member.crc32, size, size, len(member.name.encode()), extra),
        )

    def _end(self, count: int, size: int, offset: int) -> bytes:
        if not self._large:
            return struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, size, offset, 0)
        version = VERSION_64
        made_by = MADE_ON_UNIX | version
        end_64 = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, made_by, version, 0, 0, count, count, size, offset)
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, offset + size, 1)
        return end_64 + locator + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, *[0xFFFF] * 2, *[LIMIT_32] * 2, 0)

    @property
    def _version(self) -> int:
        return VERSION_64 if self._large else VERSION


def members_of(folder: Path) -> list[Member]:
    """The files directly in a folder, by name."""
    return [Member(path.name, path.stat().st_size, _crc32(path)) for path in sorted(folder.iterdir()) if path.is_file()]


def reader_of(folder: Path) -> Reader:
    """Reads members from the folder that `members_of` listed."""

    def read(name: str, start: int, end: int) -> Iterator[bytes]:
        with (folder / name).open("rb") as file:
            file.seek(start)
            while start < end and (chunk := file.read(min(CHUNK_BYTES, end - start))):
                start += len(chunk)
                yield chunk

    return read


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc
