"""What is uploaded as a dataset: a file, or a folder as the tar archive that it would be, which is never written."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sam3_lora.client.errors import LocalFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK_BYTES = 512
RECORD_BYTES = 20 * BLOCK_BYTES
USED = frozenset({".json", ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""Endings of the files of a folder that belong to a dataset."""


@dataclass(frozen=True)
class _Member:
    path: Path
    header: bytes
    size_bytes: int
    start: int
    """Where its header begins in the archive."""

    @property
    def end(self) -> int:
        return self.start + len(self.header) + -(-self.size_bytes // BLOCK_BYTES) * BLOCK_BYTES


class Source:
    """Bytes that can be read from any place, always the same ones while `fingerprint` is the same."""

    def __init__(self, path: Path) -> None:
        """Look at a file or folder.

        Raises:
            LocalFileError: if it is not there, or there is nothing in it.
        """
        self._path = path.resolve()
        self._members: list[_Member] = []
        if self._path.is_dir():
            self._members = list(_members(self._path))
            if not self._members:
                raise LocalFileError(f"{path} has no images and no annotations")
            self.filename = f"{self._path.name}.tar"
            self.size_bytes = -(-(self._members[-1].end + 2 * BLOCK_BYTES) // RECORD_BYTES) * RECORD_BYTES
        elif self._path.is_file():
            self.filename = self._path.name
            self.size_bytes = self._path.stat().st_size
            if self.size_bytes == 0:
                raise LocalFileError(f"{path} is empty")
        else:
            raise LocalFileError(f"{path} is not there")

    def fingerprint(self) -> str:
        """Tells this content from others, by names, sizes and times alone."""
        digest = hashlib.sha256(f"{self._path}\0{self.size_bytes}".encode())
        for path in [member.path for member in self._members] or [self._path]:
            try:
                status = path.stat()
            except OSError as error:
                raise LocalFileError(f"{path} cannot be read any more: {error.strerror}") from error
            digest.update(f"\0{path}\0{status.st_size}\0{status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def read(self, start: int, end: int) -> bytes:
        """Bytes from `start` up to, without, `end`.

        Raises:
            LocalFileError: if a file cannot be read, or has become shorter.
        """
        if not self._members:
            return _read(self._path, start, end - start)
        return b"".join(self._archived(start, end)).ljust(end - start, b"\0")

    def _archived(self, start: int, end: int) -> Iterator[bytes]:
        for member in self._members:
            if member.end <= start or member.start >= end:
                continue
            content = member.start + len(member.header)
            if start < content:
                yield member.header[max(0, start - member.start) : end - member.start]
            first, last = max(start - content, 0), min(end - content, member.size_bytes)
            if first < last:
                yield _read(member.path, first, last - first)
            padding = min(end, member.end) - max(start, content + member.size_bytes)
            yield bytes(max(0, padding))


def _members(folder: Path) -> Iterator[_Member]:
    start = 0
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in inner.parts)
        if is_hidden or path.suffix.lower() not in USED or not path.is_file():
            continue
        entry = tarfile.TarInfo(inner.as_posix())
        entry.size = path.stat().st_size
        member = _Member(path, entry.tobuf(tarfile.PAX_FORMAT), entry.size, start)
        start = member.end
        yield member


def _read(path: Path, start: int, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(count)
    except OSError as error:
        raise LocalFileError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) != count:
        raise LocalFileError(f"{path} became shorter while it was read")
    return content
