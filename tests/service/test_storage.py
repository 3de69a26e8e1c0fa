from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.shared import log as logs
from service.shared import object_stores
from service.shared.errors import NotFoundError, StorageError
from service.shared.settings import Settings
from service.shared.staging import leftovers
from service.shared.storage import PART_BYTES, Storage
from tests.servers import S3Server, free_port, s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = os.urandom(3 * 2**20 + 5)
LARGE = PART_BYTES * 2 + 17


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Storage of both kinds; the bucket's is in a folder of this test's own."""
    place = request.getfixturevalue("s3").settings(tmp_path.name) if request.param == "s3" else {}
    return Storage(Settings(data_dir=tmp_path / "data dir ü%", **place))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def test_a_file_comes_back_as_it_went_in(storage: Storage, source: Path, tmp_path: Path) -> None:
    beats: list[int] = []
    stored = storage.put_file("jobs/a/f.bin", source, on_chunk=lambda: beats.append(1))
    assert (stored.size_bytes, stored.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert len(beats) == 4
    assert storage.fetch("jobs/a/f.bin", tmp_path / "back") == stored
    assert (tmp_path / "back").read_bytes() == CONTENT
    with pytest.raises(FileExistsError):
        storage.fetch("jobs/a/f.bin", tmp_path / "back")


def test_an_empty_file_is_a_file(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert storage.put_file("a/empty", tmp_path / "empty").size_bytes == 0
    assert storage.exists("a/empty")
    assert list(storage.get_range("a/empty")) == []


@pytest.mark.parametrize(("start", "end"), [(0, 1), (5, 2**20 + 7), (2**21, None), (0, None), (len(CONTENT), None)])
def test_ranges(storage: Storage, source: Path, start: int, end: int | None) -> None:
    storage.put_file("a/f", source)
    assert b"".join(storage.get_range("a/f", start, end)) == CONTENT[start:end]


def test_keys_are_listed_and_deleted_by_folder(storage: Storage, source: Path) -> None:
    for key in ("a/1", "a/b/2", "ab/3"):
        storage.put_file(key, source)
    assert sorted(storage.list("a")) == ["a/1", "a/b/2"]
    assert list(storage.pages("a", unchanged_since=datetime.now(UTC) - timedelta(hours=1))) == []
    (page,) = storage.pages("a", unchanged_since=datetime.now(UTC) + timedelta(hours=1))
    assert sorted((file.key, file.size_bytes) for file in page) == [
        ("a/1", storage.size("a/1")),
        ("a/b/2", storage.size("a/b/2")),
    ]
    storage.delete_prefix("a")
    storage.delete("a/1")
    assert (storage.list("a"), storage.list("ab")) == ([], ["ab/3"])


def test_what_is_not_there_is_named(storage: Storage) -> None:
    for ask in (storage.size, storage.get_range):
        with pytest.raises(NotFoundError):
            ask("a/nope")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "a/./x"])
def test_no_key_leads_out(storage: Storage, source: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="path"):
        storage.put_file(key, source)
    assert not (tmp_path / "data dir ü%" / "x").exists()


def test_a_file_that_cannot_be_read_to_its_end_is_not_stored(storage: Storage, source: Path) -> None:
    def fail() -> None:
        raise RuntimeError("lease lost")

    with pytest.raises(RuntimeError, match="lease lost"):
        storage.put_file("a/f", source, on_chunk=fail)
    assert storage.list("a") == []
    if storage._root is not None:
        assert not [path for path in storage._root.rglob("*") if path.is_file()]


def test_what_takes_several_requests_comes_back_as_it_went_in(storage: Storage, tmp_path: Path) -> None:
    piece = os.urandom(LARGE // 1000)
    content = (piece * 1001)[:LARGE]
    chunks = (content[at : at + 100_000] for at in range(0, LARGE, 100_000))
    stored = storage.put("a/large", chunks, size_bytes=LARGE)
    assert (stored.size_bytes, stored.sha256) == (LARGE, hashlib.sha256(content).hexdigest())
    assert storage.fetch("a/large", tmp_path / "back") == stored
    assert b"".join(storage.get_range("a/large", PART_BYTES - 3, PART_BYTES + 3)) == content[PART_BYTES - 3 :][:6]


def test_many_files_are_deleted_at_once_also_where_some_are_gone(storage: Storage) -> None:
    keys = [f"a/{n}" for n in range(25)]
    for key in keys[5:]:
        storage.put(key, [b"x"], size_bytes=1)
    storage.delete_all(keys)
    assert storage.list("a") == []
    storage.check()


def test_a_bucket_that_is_not_there_is_named(s3: S3Server, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, **s3.settings() | {"storage_url": "s3://nowhere"})
    storage = Storage(settings)
    for ask in (storage.check, lambda: storage.put("a/f", [b"x"], size_bytes=1)):
        with pytest.raises(StorageError, match="no such bucket"):
            ask()


def test_wrong_credentials_are_named_and_never_shown(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-canary")
    logs.configure("DEBUG", "test")
    storage = Storage(Settings(data_dir=tmp_path, **s3.settings()))
    for ask in (storage.check, lambda: storage.put("a/f", [b"x"], size_bytes=1), lambda: storage.size("a/f")):
        with pytest.raises(StorageError, match=r"check the AWS_\* variables") as caught:
            ask()
        assert s3.url not in caught.value.message
    logs.configure("ERROR", "test")
    shown = "".join(capfd.readouterr())
    assert "storage_failed" in shown
    assert "canary" not in shown + repr(storage._store)


@pytest.fixture
def mortal(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[S3Server, Path]]:
    """A server that a test may kill, and its folder; its clients do not wait long for it."""
    monkeypatch.setattr(object_stores, "MAX_RETRIES", 1)
    folder = tmp_path / "s3"
    folder.mkdir()
    with s3_server(folder, free_port()) as server:
        yield server, folder


def test_a_server_that_dies_in_an_upload_leaves_no_file(mortal: tuple[S3Server, Path], tmp_path: Path) -> None:
    server, folder = mortal
    storage = Storage(Settings(data_dir=tmp_path, **server.settings()))

    def chunks() -> Iterator[bytes]:
        for number in range(40):
            if number == 20:
                server.process.kill()
                server.process.wait()
            yield bytes(2**20)

    with pytest.raises(StorageError, match="does not work at the moment"):
        storage.put("a/f", chunks(), size_bytes=40 * 2**20)
    with pytest.raises(StorageError):
        storage.check()
    with s3_server(folder, int(server.url.rpartition(":")[2])):
        storage.check()
        assert not storage.exists("a/f")
        assert storage.put("a/f", [b"again"], size_bytes=5).size_bytes == 5


def test_a_server_that_dies_in_a_download_is_an_error_and_not_a_short_file(
    mortal: tuple[S3Server, Path], tmp_path: Path
) -> None:
    server, _ = mortal
    storage = Storage(Settings(data_dir=tmp_path, **server.settings()))
    storage.put("a/f", [bytes(LARGE)], size_bytes=LARGE)
    beats: list[int] = []

    def kill() -> None:
        if not beats:
            server.process.kill()
            server.process.wait()
        beats.append(1)

    with pytest.raises(StorageError, match="does not work at the moment"):
        storage.fetch("a/f", tmp_path / "back", on_chunk=kill)
    assert beats


FULL_DISK = """
import sys
from pathlib import Path
from service.shared.errors import StorageFullError
from service.shared.settings import Settings
from service.shared.storage import Storage
storage = Storage(Settings(data_dir=Path(sys.argv[1])))
source = Path(sys.argv[2])
try:
    storage.put_file("a/f", source)
except StorageFullError:
    assert storage.list("a") == []
    Path(sys.argv[1], "small").write_bytes(b"x")
    storage.put_file("a/small", Path(sys.argv[1], "small"))
    print("named")
"""


def test_a_full_disk_has_its_own_error(tmp_path: Path, source: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", *mount], capture_output=True).returncode:
        pytest.skip("needs a small file system of its own")
    script = f'{" ".join(mount)} && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-c", FULL_DISK, str(disk), str(source)]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert result.stdout.endswith("named\n"), result.stderr


def test_what_killed_writers_left_is_deleted_after_a_while(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    storage, root = Storage(settings), settings.storage_dir
    writer = (
        "import os, sys, obstore; from obstore.store import LocalStore; "
        "writer = obstore.open_writer(LocalStore(prefix=sys.argv[1]), 'jobs/a/file', buffer_size=2**20).__enter__(); "
        "writer.write(b'x' * 2**22); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", writer, str(root)], check=False)
    kept = storage.put("jobs/a/named#1file", [b"kept"], size_bytes=4)
    left = [path for path in root.rglob("*") if path.is_file() and path.name != "named#1file"]
    assert left
    assert storage.list("jobs/") == [kept.key]
    storage.delete_unfinished(datetime.now(UTC) - timedelta(hours=1))
    assert all(path.exists() for path in left)
    storage.delete_unfinished(datetime.now(UTC) + timedelta(hours=1))
    assert not any(path.exists() for path in left)
    assert b"".join(storage.get_range(kept.key)) == b"kept"


def test_leftovers_that_vanish_under_the_look_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, later = Settings(data_dir=tmp_path), datetime.now(UTC) + timedelta(hours=1)
    storage, root, staged = Storage(settings), settings.storage_dir, settings.staging_dir
    assert root is not None
    staged.mkdir()
    for name in "abc":
        (staged / name).touch()
        (root / f"{name}#1").touch()
    found = leftovers(staged, later)
    first = next(found)
    for path in staged.iterdir():
        path.unlink()
    assert first.parent == staged
    assert list(found) == []
    is_file = Path.is_file

    def is_file_and_goes(path: Path) -> bool:
        answer = is_file(path)
        path.unlink()
        return answer

    monkeypatch.setattr(Path, "is_file", is_file_and_goes)
    assert list(storage.unfinished(later)) == []
    assert list(root.iterdir()) == []
