"""Read the members of a tar archive, plain or compressed, as one forward stream.

Headers are parsed one block at a time and extended headers are capped, which tarfile's own iteration does
not do. Format: POSIX.1-2001 pax, with GNU long names.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from typing import TYPE_CHECKING

from sam3_lora.coco.archive_budget import CHUNK_BYTES, MIB, Budget, Member, invalid, unsafe
from sam3_lora.coco.report import quote

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = tarfile.BLOCKSIZE
MAX_HEADER_BYTES = 64 * 1024  # of one pax or long-name header
XZ_MEMORY_BYTES = 256 * MIB  # xz -9 needs 65 MiB
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE)
FORMATS = "use zip, tar, tar.gz, tar.bz2 or tar.xz"


def read_tar(archive: Path, magic: bytes, budget: Budget) -> Iterator[Member]:
    """Members in order; a member's content that was not read is skipped, and the end is checked.

    Raises:
        ArchiveError: for anything damaged or truncated, and for links, devices and sparse files.
    """
    with _open(archive, magic) as file:
        stream = _Stream(file, budget)
        overrides: dict[str, str] = {}
        while (header := _header(stream)) is not None:
            if header.type in PAX or header.type == tarfile.GNUTYPE_LONGNAME:
                overrides |= _extended(stream, header)
                continue
            name = overrides.get("path", header.name)
            size = _size(overrides.get("size", header.size), name)
            overrides = {}
            if header.type not in FILES and header.type != tarfile.DIRTYPE:
                raise unsafe(f"{quote(name)} is a link or a special file", name)
            is_folder = header.type == tarfile.DIRTYPE
            content = _content(stream, 0 if is_folder else size)  # a folder's size field announces no content
            yield Member(name, is_folder, content)
            for _ in content:
                pass
        stream.drain()


class _Stream:
    """The unpacked bytes: every read is exact and paid for."""

    def __init__(self, file: io.BufferedIOBase, budget: Budget) -> None:
        self._file = file
        self._budget = budget

    def read(self, size: int) -> bytes:
        data = self._some(size)
        while len(data) < size:
            more = self._some(size - len(data))
            if not more:
                raise invalid("the archive is truncated")
            data += more
        return data

    def drain(self) -> None:
        """Read to the end, where compressed formats keep their checksum."""
        while self._some(CHUNK_BYTES):
            pass

    def _some(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except (EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            raise invalid(f"the archive is damaged or truncated: {error}") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise invalid(f"the archive is damaged: {error}") from error
        self._budget.spend(len(data))
        return data


def _header(stream: _Stream) -> tarfile.TarInfo | None:
    """The next header; None at the end-of-archive block."""
    block = stream.read(BLOCK)
    if not any(block):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise invalid(f"this is not an archive, or it is damaged: {error}", hint=FORMATS) from error


def _extended(stream: _Stream, header: tarfile.TarInfo) -> dict[str, str]:
    """What a pax or GNU header says about the next member: its `path` and `size`."""
    if not 0 <= header.size <= MAX_HEADER_BYTES:
        raise invalid(f"an extended header of {header.size:,} bytes is too large")
    data = b"".join(_content(stream, header.size))
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    records = _pax_records(data)
    if any(key.startswith("GNU.sparse") for key in records):
        raise unsafe("sparse files are not supported", records.get("path", header.name))
    if header.type == tarfile.XGLTYPE:
        if records.keys() & {"path", "size"}:
            raise invalid("a global header sets the name or size of every member")
        return {}
    return {key: records[key] for key in ("path", "size") if key in records}


def _pax_records(data: bytes) -> dict[str, str]:
    """Records are `<length> <key>=<value>` and a line feed; the length counts all of it."""
    records = {}
    while data:
        digits, space, _ = data.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > len(str(MAX_HEADER_BYTES)):
            raise invalid("an extended header is damaged")
        record, data = data[: int(digits)], data[int(digits) :]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or record[-1:] != b"\n" or len(record) != int(digits):
            raise invalid("an extended header is damaged")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
    return records


def _size(value: str | int, name: str) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise invalid(f"{quote(name)} has no valid size", name)
    return int(text)


def _content(stream: _Stream, size: int) -> Iterator[bytes]:
    remaining = size
    while remaining:
        chunk = stream.read(min(remaining, CHUNK_BYTES))
        remaining -= len(chunk)
        yield chunk
    stream.read(-size % BLOCK)


def _open(archive: Path, magic: bytes) -> io.BufferedIOBase:
    if magic[:2] == b"\x1f\x8b":
        return gzip.open(archive, "rb")
    if magic[:3] == b"BZh":
        return bz2.open(archive, "rb")
    if magic == b"\xfd7zXZ\0":
        return io.BufferedReader(_XzFile(archive), CHUNK_BYTES)  # type: ignore[type-var]
    return archive.open("rb")


class _XzFile(io.RawIOBase):
    """Unpacks xz with bounded memory, which the standard file class cannot be told to do."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while not self._decoder.eof:
            packed = self._file.read(CHUNK_BYTES) if self._decoder.needs_input else b""
            if self._decoder.needs_input and not packed:
                raise EOFError("the stream ends early")
            data = self._decoder.decompress(packed, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0

    def close(self) -> None:
        self._file.close()
        super().close()
