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

from service.shared.errors import NotFoundError
from service.shared.settings import Settings
from service.shared.storage import Storage

if TYPE_CHECKING:
    pass

CONTENT = os.urandom(3 * 2**20 + 5)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(Settings(data_dir=tmp_path / "data dir ü%"))


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
    assert storage.list("a", unchanged_since=datetime.now(UTC) - timedelta(hours=1)) == []
    assert len(storage.list("a", unchanged_since=datetime.now(UTC) + timedelta(hours=1))) == 2
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
    assert not [path for path in storage._root.rglob("*") if path.is_file()]


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
    assert result.stdout == "named\n", result.stderr
