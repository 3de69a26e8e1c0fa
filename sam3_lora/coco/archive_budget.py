"""What an archive may cost: the limits of an extraction, their running count, and the error that ends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sam3_lora.coco.report import DatasetIssueError, Issue, IssueCode

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024
CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class ExtractLimits:
    """Caps on what an archive may unpack to."""

    total_bytes: int = 20 * 1024 * MIB
    file_bytes: int = 1024 * MIB
    files: int = 200_000
    compression_ratio: int = 200  # unpacked : packed, judged once `ratio_free_bytes` are unpacked
    ratio_free_bytes: int = 64 * MIB
    path_depth: int = 12  # parts of a member's name
    path_bytes: int = 1024


class ArchiveError(DatasetIssueError):
    """The archive is damaged or hostile; nothing of it was kept."""

    def __init__(self, code: IssueCode, message: str, *, member: str | None = None, hint: str = "") -> None:
        super().__init__(Issue(code=code, message=message, file=member, hint=hint))
        self.member = member


@dataclass(frozen=True)
class Member:
    """One entry of an archive. `chunks` is read at most once, before the next member is asked for."""

    name: str
    is_folder: bool
    chunks: Iterator[bytes]


class Budget:
    """Counts unpacked bytes and entries, and ends the extraction at the first limit passed."""

    def __init__(self, limits: ExtractLimits, packed_bytes: int) -> None:
        self.limits = limits
        self._packed_bytes = packed_bytes
        self._bytes = 0
        self._entries = 0

    def spend(self, count: int) -> None:
        """Account for `count` unpacked bytes."""
        self._bytes += count
        limits = self.limits
        if self._bytes > limits.total_bytes:
            raise bomb(f"the archive unpacks to more than {limits.total_bytes:,} bytes")
        if self._bytes > max(limits.ratio_free_bytes, limits.compression_ratio * self._packed_bytes):
            raise bomb(f"the archive unpacks to more than {limits.compression_ratio} times its size")

    def count_entry(self) -> None:
        """Account for one entry, of whatever kind."""
        self._entries += 1
        if self._entries > self.limits.files:
            raise bomb(f"the archive has more than {self.limits.files:,} entries")


def bomb(message: str, member: str | None = None) -> ArchiveError:
    hint = "upload only the images and annotation files, or split the dataset"
    return ArchiveError(IssueCode.ARCHIVE_BOMB, message, member=member, hint=hint)


def invalid(message: str, member: str | None = None, hint: str = "create and upload the archive again") -> ArchiveError:
    return ArchiveError(IssueCode.ARCHIVE_INVALID, message, member=member, hint=hint)


def unsafe(message: str, member: str) -> ArchiveError:
    hint = "use only regular files with plain relative names, e.g. train/image_001.jpg"
    return ArchiveError(IssueCode.ARCHIVE_UNSAFE_PATH, message, member=member, hint=hint)
