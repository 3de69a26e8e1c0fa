"""A folder as an archive that is never written."""

from __future__ import annotations

import io
import itertools
import os
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam3_lora.client._archives import Source
from sam3_lora.client.errors import LocalFileError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pallets"
    for name, size in (
        ("train/_annotations.coco.json", 700),
        ("train/a.JPG", 512),
        ("train/ä b.png", 1),
        (f"valid/{'long' * 60}.jpg", 1025),
        ("valid/empty.json", 0),
        ("notes.txt", 9),
        (".cache/x.jpg", 9),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    return folder


def test_it_holds_what_belongs_to_a_dataset(folder: Path) -> None:
    source = Source(folder)
    assert source.filename == "pallets.tar"
    with tarfile.open(fileobj=io.BytesIO(source.read(0, source.size_bytes))) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive.getmembers()}  # type: ignore[union-attr]
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("notes.txt", "x.jpg")]
    assert members == {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}
    assert list(members) == sorted(members)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cuts=st.lists(st.integers(0, 12_000), max_size=6))
def test_its_pieces_are_the_whole(folder: Path, cuts: list[int]) -> None:
    source = Source(folder)
    whole = source.read(0, source.size_bytes)
    assert len(whole) == source.size_bytes
    places = sorted({0, source.size_bytes, *(min(cut, source.size_bytes) for cut in cuts)})
    assert b"".join(source.read(*pair) for pair in itertools.pairwise(places)) == whole


def test_a_change_is_another_fingerprint(folder: Path, tmp_path: Path) -> None:
    before = Source(folder).fingerprint()
    assert Source(folder).fingerprint() == before
    picture = folder / "train" / "a.JPG"
    os.utime(picture, ns=(1, 1))
    assert Source(folder).fingerprint() != before


def test_what_cannot_be_sent_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.zip").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "readme.md").write_text("no data")
    for name, told in (("gone.zip", "not there"), ("empty.zip", "is empty"), ("nothing", "no images")):
        with pytest.raises(LocalFileError, match=told):
            Source(tmp_path / name)
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"12345")
    source = Source(archive)
    archive.write_bytes(b"1")
    with pytest.raises(LocalFileError, match="shorter"):
        source.read(0, 5)
