"""The archive that is never written is the one that everyone's unzip reads."""

from __future__ import annotations

import io
import random
import zipfile
import zlib
from typing import TYPE_CHECKING

import pytest

from service.shared import zip_layout
from service.shared.zip_layout import Member, ZipLayout, members_of, reader_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = {"adapter.safetensors": bytes(range(256)) * 5000, "empty": b"", "größe.json": b"{}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("limit", [zip_layout.LIMIT_32, 1000])  # the small one makes it a zip64 archive
def test_an_archive_holds_its_files_and_any_part_of_it_can_be_read(
    folder: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ZipLayout, "_is_large", staticmethod(lambda size_bytes: size_bytes > limit))
    layout = ZipLayout(members_of(folder))
    read = reader_of(folder)
    whole = b"".join(layout.read(0, layout.size_bytes, read))
    assert len(whole) == layout.size_bytes
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == FILES
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    cuts = random.Random(0)
    for _ in range(200):
        start, end = sorted(cuts.randrange(layout.size_bytes + 1) for _ in range(2))
        assert b"".join(layout.read(start, end, read)) == whole[start:end]


def test_an_archive_of_more_than_4_gib_says_so_where_readers_look() -> None:
    size = 5 * 2**30
    zeros = bytes(2**20)

    def read(name: str, start: int, end: int) -> Iterator[bytes]:
        raise AssertionError(f"{name} {start} {end}: only the directory is read")

    layout = ZipLayout([Member("large", size, zlib.crc32(zeros)), Member("after", 0, 0)])

    class Sparse(io.RawIOBase):
        """The archive as a file of which only headers can be read."""

        place = 0

        def seekable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            self.place = offset + (0, self.place, layout.size_bytes)[whence]
            return self.place

        def tell(self) -> int:
            return self.place

        def read(self, size: int = -1) -> bytes:
            end = layout.size_bytes if size < 0 else min(self.place + size, layout.size_bytes)
            content = b"".join(layout.read(self.place, end, read))
            self.place = end
            return content

    with zipfile.ZipFile(Sparse()) as archive:
        assert [(info.filename, info.file_size) for info in archive.infolist()] == [("large", size), ("after", 0)]
        assert archive.infolist()[1].header_offset > size
        assert archive.read("after") == b""
