"""Unpack an uploaded zip or tar archive without trusting it.

Names are checked here, once for both formats; the formats are read by `zip_members` and `tar_members`.
"""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sam3_lora.coco.archive_budget import ArchiveError, Budget, ExtractLimits, Member, bomb, invalid, unsafe
from sam3_lora.coco.report import quote
from sam3_lora.coco.tar_members import read_tar
from sam3_lora.coco.zip_members import read_zip
from sam3_lora.errors import StorageFullError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ArchiveError", "ExtractLimits", "ExtractedArchive", "extract"]

JUNK_NAMES = {".ds_store", "thumbs.db", "desktop.ini"}
JUNK_FOLDER = "__macosx"
DRIVE = re.compile(r"[A-Za-z]:")
# Controls, lone surrogates, line separators: they forge log lines, break JSON, or cannot be written.
FORBIDDEN_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
BIDI_OVERRIDES = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
MAX_PART_BYTES = 255  # longest file name of common file systems


@dataclass(frozen=True)
class ExtractedArchive:
    """What was written: `files` regular files of `size_bytes` in all, below `root`."""

    root: Path
    files: int
    size_bytes: int


def extract(archive: Path, destination: Path, limits: ExtractLimits | None = None) -> ExtractedArchive:
    """Unpack `archive` into `destination`, which must not exist and appears only once it is complete.

    Only regular files are written; junk of desktop systems is skipped. On any failure nothing remains.

    Raises:
        ArchiveError: `issue.code` is archive_unsafe_path, archive_bomb or archive_invalid.
        FileExistsError: if `destination` exists.
        StorageFullError: if the disk is full.
    """
    if destination.exists() or destination.is_symlink():
        raise FileExistsError(f"{destination} exists")
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        budget = Budget(limits or ExtractLimits(), archive.stat().st_size)
        written = _write_members(_members(archive, budget), partial, budget)
        partial.rename(destination)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError("the disk is full", hint="free some space, then try again") from error
        raise
    return ExtractedArchive(destination, len(written), sum(written))


def _members(archive: Path, budget: Budget) -> Iterator[Member]:
    with archive.open("rb") as file:
        magic = file.read(6)
    if magic[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return read_zip(archive, budget)
    return read_tar(archive, magic, budget)


def _write_members(members: Iterator[Member], root: Path, budget: Budget) -> list[int]:
    """Sizes of the files written."""
    names = _Names(budget.limits)
    sizes = []
    for member in members:
        budget.count_entry()
        path = names.claim(member.name, is_folder=member.is_folder)
        if path is None or member.is_folder:
            continue
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        sizes.append(_write(target, member, budget.limits.file_bytes))
    if not sizes:
        raise invalid("the archive holds no files")
    return sizes


def _write(target: Path, member: Member, max_bytes: int) -> int:
    size = 0
    with target.open("xb") as file:
        for chunk in member.chunks:
            size += len(chunk)
            if size > max_bytes:
                raise bomb(f"a file unpacks to more than {max_bytes:,} bytes", member.name)
            file.write(chunk)
    return size


class _Names:
    """Accepts each safe name once, so that no two members can mean one file on any file system."""

    def __init__(self, limits: ExtractLimits) -> None:
        self._limits = limits
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}  # folded name -> the spelling first seen

    def claim(self, name: str, *, is_folder: bool) -> PurePosixPath | None:
        """The relative path to write to; None for junk to skip.

        Raises:
            ArchiveError: if the name is unsafe or taken.
        """
        path = self._safe(name)
        if path is None or path.parts[0].lower() == JUNK_FOLDER or path.name.lower() in JUNK_NAMES:
            return None
        for folder in [*reversed(path.parents[:-1]), *([path] if is_folder else [])]:
            key = _folded(folder)
            if key in self._files or self._folders.setdefault(key, str(folder)) != str(folder):
                raise unsafe(f"{quote(name)} clashes with another member's name", name)
        if not is_folder:
            key = _folded(path)
            if key in self._files or key in self._folders:
                raise unsafe(f"{quote(name)} occurs twice, or differs only in case from another member", name)
            self._files.add(key)
        return path

    def _safe(self, name: str) -> PurePosixPath | None:
        if "\\" in name or name.startswith("/") or DRIVE.match(name):
            raise unsafe(f"{quote(name)} is not a plain relative name", name)
        if any(unicodedata.category(char) in FORBIDDEN_CATEGORIES or char in BIDI_OVERRIDES for char in name):
            raise unsafe(f"{quote(name)} has characters that are not allowed in a name", name)
        if len(name.encode()) > self._limits.path_bytes:
            raise unsafe(f"{quote(name)} is longer than {self._limits.path_bytes} bytes", name)
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise unsafe(f"{quote(name)} leaves the archive's folder", name)
        if len(parts) > self._limits.path_depth:
            raise unsafe(f"{quote(name)} is nested deeper than {self._limits.path_depth} folders", name)
        if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
            raise unsafe(f"{quote(name)} has a part longer than {MAX_PART_BYTES} bytes", name)
        return PurePosixPath(*parts) if parts else None


def _folded(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())
