"""Datasets out of a bucket, against a real S3-compatible server."""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import obstore
import pytest

from service.shared.ids import new_id
from service.shared.object_stores import PART_BYTES, open_bucket
from service.shared.settings import Settings
from tests.coco.datasets import write_roboflow
from tests.servers import S3Server
from worker import buckets
from worker.buckets import fetch_from_bucket
from worker.failures import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from obstore.store import S3Store

ODD = ("with space.jpg", "Größe.jpg", "50%25.jpg", "a#b?c.jpg", "+plus&.jpg")


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Settings:
    """An installation that keeps its own files on disk, and may read datasets from the server's bucket."""
    return Settings(data_dir=tmp_path / "data", dataset_buckets=(f"s3://{s3.bucket}",), storage_endpoint=s3.url)


@pytest.fixture
def store(bucket: Settings) -> S3Store:
    return open_bucket(bucket, S3Server.bucket)


@pytest.fixture
def folder(store: S3Store) -> str:
    """A folder of the bucket that nobody else uses."""
    return new_id("ds")


@pytest.fixture
def fetch(bucket: Settings, tmp_path: Path) -> Callable[..., bytes]:
    def fetched(key: str, *, name: str = S3Server.bucket, on_chunk: Any = lambda: None, **changes: Any) -> bytes:
        target = tmp_path / new_id("archive")
        try:
            fetch_from_bucket(f"s3://{name}/{key}", target, bucket.model_copy(update=changes), on_chunk=on_chunk)
            return target.read_bytes()
        finally:
            target.unlink(missing_ok=True)

    return fetched


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, 2 * PART_BYTES + 5])
def test_an_archive_arrives_as_it_is(store: S3Store, folder: str, fetch: Any, size: int) -> None:
    content = hashlib.shake_128(b"content").digest(size)
    obstore.put(store, f"{folder}/a.zip", content)
    assert fetch(f"{folder}/a.zip") == content


def test_a_folder_becomes_the_same_tar_each_time(store: S3Store, folder: str, fetch: Any, tmp_path: Path) -> None:
    write_roboflow(tmp_path / "bolts")
    files = {path.relative_to(tmp_path / "bolts").as_posix(): path for path in (tmp_path / "bolts").rglob("*.*")}
    for name in sorted(files, reverse=True):
        obstore.put(store, f"{folder}/{name}", files[name].read_bytes())
    obstore.put(store, f"{folder}-other/x.jpg", b"of another folder whose name begins alike")
    first, second = fetch(f"{folder}/"), fetch(f"{folder}/")
    assert first == second
    assert members(first) == {name: path.read_bytes() for name, path in files.items()}
    assert list(members(first)) == sorted(files)


def test_large_and_oddly_named_objects_arrive(store: S3Store, folder: str, fetch: Any) -> None:
    large = hashlib.shake_128(b"large").digest(PART_BYTES + 3)
    contents = {"large.jpg": large} | {f"train/{name}": name.encode() for name in ODD}
    for name, content in contents.items():
        obstore.put(store, f"{folder}/{name}", content)
    assert members(fetch(f"{folder}/")) == contents


def test_markers_of_folders_are_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(*objects: tuple[str, int]) -> list[str]:
        page = [
            {"path": path, "size": size, "e_tag": None, "last_modified": datetime.now(UTC)} for path, size in objects
        ]
        monkeypatch.setattr(buckets.obstore, "list", lambda *_, **__: [page])
        return [found.key for found in buckets._objects(None, "d/", "s3://b/d/", lambda: None)]  # type: ignore[arg-type]

    assert listed(("d", 0), ("d/train", 0), ("d/train/a.jpg", 3), ("d/b.json", 2)) == ["d/b.json", "d/train/a.jpg"]
    with pytest.raises(SourceError, match="'d/train' is both a file and a folder"):
        listed(("d/train", 5), ("d/train/a.jpg", 3))
    with pytest.raises(SourceError, match="nothing at"):
        listed(("d", 0))


def test_what_is_not_there_or_too_large_is_said(store: S3Store, folder: str, fetch: Any) -> None:
    for number in range(3):
        obstore.put(store, f"{folder}/{number}.jpg", b"x" * 10)
    for key, name, text in (
        (f"{folder}/nope.zip", S3Server.bucket, "nothing at"),
        (f"{folder}", S3Server.bucket, "nothing at|folder ends with a slash"),
        (f"{folder}-nope/", S3Server.bucket, "nothing at"),
        ("a.zip", "no-such-bucket", "no-such-bucket"),
    ):
        with pytest.raises(SourceError, match=text) as error:
            fetch(key, name=name)
        assert error.value.failure.code == "source_unavailable"
        assert "names" in error.value.failure.hint
    for key in (f"{folder}/", f"{folder}/0.jpg"):
        with pytest.raises(SourceError, match="larger than 9 bytes") as error:
            fetch(key, max_upload_bytes=9)
        assert error.value.failure.code == "source_too_large"
        assert "SAM3_MAX_UPLOAD_BYTES" in error.value.failure.hint
    assert len(fetch(f"{folder}/", max_upload_bytes=30)) > 30


def test_too_many_objects_are_not_counted_to_the_end(
    store: S3Store, folder: str, fetch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        obstore.put(store, f"{folder}/{number}.jpg", b"x")
    monkeypatch.setattr(buckets, "MAX_OBJECTS", 2)
    with pytest.raises(SourceError, match="more than 2 objects"):
        fetch(f"{folder}/")


def test_what_changes_meanwhile_is_refused_and_may_be_tried_again(store: S3Store, folder: str, fetch: Any) -> None:
    key = f"{folder}/a.zip"
    obstore.put(store, key, b"a" * (2 * PART_BYTES))
    changed = False

    def change() -> None:
        nonlocal changed
        if not changed:
            changed = True
            time.sleep(1.1)  # some servers tell versions apart by nothing but the second
            obstore.put(store, key, b"b" * (2 * PART_BYTES))

    with pytest.raises(SourceError, match="changed while it was read") as error:
        fetch(key, on_chunk=change)
    assert error.value.failure.retryable


def test_wrong_credentials_are_named_as_such(
    store: S3Store, folder: str, fetch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstore.put(store, f"{folder}/a.zip", b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for key in (f"{folder}/a.zip", f"{folder}/"):
        with pytest.raises(SourceError, match="credentials") as error:
            fetch(key)
        assert not error.value.failure.retryable
        assert "AWS_" in error.value.failure.hint


def test_a_bucket_that_is_away_is_tried_again_later(fetch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.shared.object_stores.MAX_RETRIES", 0)
    with pytest.raises(SourceError, match="could not be read") as error:
        fetch("a.zip", storage_endpoint="http://127.0.0.1:9")
    assert error.value.failure.retryable


def test_it_takes_no_longer_than_it_may_and_ends_when_it_is_told(store: S3Store, folder: str, fetch: Any) -> None:
    for number in range(20):
        obstore.put(store, f"{folder}/{number}.jpg", b"x")
    with pytest.raises(SourceError, match="took longer than"):
        fetch(f"{folder}/", fetch_timeout_s=1e-9)

    def lose() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(f"{folder}/", on_chunk=lose)
