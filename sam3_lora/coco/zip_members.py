"""Read the members of a zip archive one by one, refusing what zipfile lets pass."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

from sam3_lora.coco.archive_budget import CHUNK_BYTES, Budget, Member, bomb, invalid, unsafe
from sam3_lora.coco.report import quote

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIRECTORY_BYTES_PER_ENTRY = 256  # a generous mean: 46 fixed bytes, the name, extra fields
LOCAL_HEADER_BYTES = 30
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1
# What zipfile raises on damaged input: RuntimeError covers NotImplementedError, ValueError the Unicode errors.
BAD_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError)


def read_zip(archive: Path, budget: Budget) -> Iterator[Member]:
    """Members in the order of the file's content; the directory as a whole is checked before the first.

    Raises:
        ArchiveError: for anything damaged, encrypted, overlapping or not a regular file or folder.
    """
    with _BoundedFile(archive, budget.limits.files * DIRECTORY_BYTES_PER_ENTRY) as file:
        try:
            opened = zipfile.ZipFile(file)
        except BAD_ZIP as error:
            raise invalid(f"the zip file is damaged: {error}") from error
        with opened:
            infos = sorted(opened.infolist(), key=lambda info: info.header_offset)
            if len(infos) > budget.limits.files:
                raise bomb(f"the archive has more than {budget.limits.files:,} entries")
            _refuse_overlaps(infos, opened.start_dir)
            for info in infos:
                _refuse_unsupported(info)
            for info in infos:
                # zipfile cuts names at a NUL, and fails on nothing being left: the original is what counts.
                name = info.orig_filename
                yield Member(name, name.endswith("/"), _chunks(opened, info, budget))


class _BoundedFile(io.FileIO):
    """A file that refuses a huge single read: zipfile loads the whole directory in one."""

    def __init__(self, path: Path, max_read_bytes: int) -> None:
        super().__init__(path, "rb")
        self._max_read_bytes = max(max_read_bytes, 2 * CHUNK_BYTES)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._max_read_bytes:
            raise bomb("the archive's directory is too large")
        return super().read(-1 if size is None else size) or b""


def _refuse_overlaps(infos: list[zipfile.ZipInfo], directory_start: int) -> None:
    """Entries that share bytes turn a small file into a huge dataset (quoted and fully overlapping entries)."""
    starts = [info.header_offset for info in infos[1:]]
    for info, end in zip(infos, [*starts, directory_start], strict=False):
        if info.header_offset < 0 or info.header_offset + LOCAL_HEADER_BYTES + info.compress_size > end:
            raise bomb(f"{quote(info.orig_filename)} overlaps another entry", info.orig_filename)


def _refuse_unsupported(info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise unsafe(f"{quote(name)} is a link or a special file", name)
    if info.flag_bits & ENCRYPTED:
        raise invalid(f"{quote(name)} is encrypted", name, "create the archive without a password")
    if info.compress_type not in METHODS:
        raise invalid(f"{quote(name)} uses an unsupported compression", name, "use the deflate method, zip's default")


def _chunks(opened: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget) -> Iterator[bytes]:
    try:
        with opened.open(info) as source:
            while chunk := source.read(CHUNK_BYTES):
                budget.spend(len(chunk))
                yield chunk
    except BAD_ZIP as error:
        raise invalid(f"{quote(info.orig_filename)} is damaged: {error}", info.orig_filename) from error
