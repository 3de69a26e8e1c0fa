"""Files of datasets and checkpoints, by key, behind one interface."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import obstore
from obstore.store import LocalStore

from service.shared.errors import NotFoundError, StorageError, StorageFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from service.shared.settings import Settings

CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class StoredFile:
    """A complete file in storage."""

    key: str
    size_bytes: int
    sha256: str


class Storage:
    """Keys are relative paths such as `datasets/<id>/archive`. A file is complete and durable, or not there.
    A key that leads out (`..`) raises ValueError.

    Every method raises `StorageError` where storage fails, `StorageFullError` where no space is left.
    """

    def __init__(self, settings: Settings) -> None:
        self._root = settings.storage_dir
        with _translated():
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._store = LocalStore(prefix=self._root)

    def put_file(self, key: str, path: Path, *, on_chunk: Callable[[], None] | None = None) -> StoredFile:
        """Copy a local file into storage and hash it on the way; `on_chunk` is called after each mebibyte."""
        digest = hashlib.sha256()
        size_bytes = 0

        def chunks() -> Iterator[bytes]:
            nonlocal size_bytes
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    size_bytes += len(chunk)
                    yield chunk
                    if on_chunk is not None:
                        on_chunk()

        with _translated():
            obstore.put(self._store, key, chunks(), chunk_size=8 * CHUNK_BYTES)
            self._sync(key)
        return StoredFile(key, size_bytes, digest.hexdigest())

    def get_range(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to, without, `end`, in chunks. The file is opened by the call itself.

        Raises:
            NotFoundError: if there is no such file.
        """
        with _translated(key):
            size_bytes = self.size(key)
            stop = size_bytes if end is None else min(end, size_bytes)
            if start >= stop:
                return iter(())
            result = obstore.get(self._store, key, options={"range": (start, stop)})
        return _chunks(result.stream(min_chunk_size=CHUNK_BYTES))

    def fetch(self, key: str, path: Path, *, on_chunk: Callable[[], None] | None = None) -> StoredFile:
        """Copy a file out of storage to a new local path and hash it on the way.

        Raises:
            NotFoundError: if there is no such file.
            FileExistsError: if the path exists.
        """
        digest = hashlib.sha256()
        size_bytes = 0
        chunks = self.get_range(key)
        with path.open("xb") as file:
            for chunk in chunks:
                with _translated():
                    file.write(chunk)
                digest.update(chunk)
                size_bytes += len(chunk)
                if on_chunk is not None:
                    on_chunk()
        return StoredFile(key, size_bytes, digest.hexdigest())

    def size(self, key: str) -> int:
        """Bytes of a file.

        Raises:
            NotFoundError: if there is no such file.
        """
        with _translated(key):
            return int(obstore.head(self._store, key)["size"])

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str, *, unchanged_since: datetime | None = None) -> list[str]:
        """Keys of the files under a folder; with `unchanged_since`, of those last written before that time."""
        with _translated():
            found = [meta for page in obstore.list(self._store, prefix) for meta in page]
        return [meta["path"] for meta in found if unchanged_since is None or meta["last_modified"] < unchanged_since]

    def delete(self, key: str) -> None:
        """Delete a file; no error if it is already gone."""
        with _translated():
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return

    def delete_prefix(self, prefix: str) -> None:
        """Delete every file under a folder."""
        for key in self.list(prefix):
            self.delete(key)

    def check(self) -> None:
        """Raise StorageError unless files can be written here."""
        with _translated():
            if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not writable", str(self._root))

    def _sync(self, key: str) -> None:
        # The store renames finished files into place but leaves it to the system when they reach the disk.
        path = self._root / key
        for place in (path, *list(path.parents)[: key.count("/") + 1]):
            descriptor = os.open(place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _chunks(stream: obstore.BytesStream) -> Iterator[bytes]:
    while True:
        with _translated():
            chunk = next(stream, None)
        if chunk is None:
            return
        yield bytes(chunk)


@contextmanager
def _translated(key: str = "") -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if key:
            raise NotFoundError(f"Storage holds no file {key!r}.") from error
        raise StorageError(f"Storage failed: {error}") from error
    except (OSError, obstore.exceptions.BaseError) as error:
        # The store reports a full disk only in its text.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
            raise StorageFullError("No space is left in storage: delete datasets or enlarge the disk.") from error
        raise StorageError(f"Storage failed: {str(error).splitlines()[0]}") from error
