"""Files of datasets and checkpoints, by key, behind one interface."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import obstore
import structlog
from obstore.exceptions import BaseError

from service.shared.errors import NotFoundError, ServiceError, StorageError, StorageFullError
from service.shared.object_stores import PAGE, PART_BYTES, is_missing_bucket, is_refusal, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from service.shared.settings import Settings

log = structlog.get_logger(__name__)

CHUNK_BYTES = 2**20
MAX_PARTS = 10_000  # S3's
CONCURRENT_PARTS = 4
UNFINISHED = re.compile(r"#\d+$")
# The store says only in its text what the other side answered.
FULL = ("os error 28", "os error 122", "StorageFull", "QuotaExceeded")


@dataclass(frozen=True)
class StoredFile:
    """A complete file in storage."""

    key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class FoundFile:
    """A file that a listing names."""

    key: str
    size_bytes: int


class Storage:
    """Keys are relative paths such as `datasets/<id>/archive`. A file is complete and durable, or not there.
    A key that leads out (`..`) raises ValueError. What is stored under a key is never replaced by something else.

    Every method raises `StorageError` where storage fails, `StorageFullError` where no space is left.
    """

    def __init__(self, settings: Settings) -> None:
        self._root = settings.storage_dir
        with _translated():
            self._store = open_store(settings)

    def put_file(self, key: str, path: Path, *, on_chunk: Callable[[], None] | None = None) -> StoredFile:
        """Copy a local file into storage and hash it on the way; `on_chunk` is called after each mebibyte."""

        def chunks() -> Iterator[bytes]:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
                    if on_chunk is not None:
                        on_chunk()

        return self.put(key, chunks(), size_bytes=path.stat().st_size)

    def put(self, key: str, chunks: Iterable[bytes], *, size_bytes: int) -> StoredFile:
        """Store what the chunks make together, in bounded memory, and hash it on the way.

        Args:
            size_bytes: how much that is, roughly.
        """
        digest = hashlib.sha256()
        stored_bytes = 0
        part_bytes = max(PART_BYTES, -(-size_bytes // MAX_PARTS) + CHUNK_BYTES)
        with _translated():
            # An exception inside aborts the writing; only a clean end makes the file visible.
            with obstore.open_writer(
                self._store, key, buffer_size=part_bytes, max_concurrency=CONCURRENT_PARTS
            ) as writer:
                for chunk in chunks:
                    digest.update(chunk)
                    stored_bytes += len(chunk)
                    writer.write(chunk)
            if self._root is not None:
                _sync(self._root / key, depth=key.count("/") + 1)
        return StoredFile(key, stored_bytes, digest.hexdigest())

    def get_range(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to, without, `end`, in chunks. Whether the file exists is found by the call itself.

        Raises:
            NotFoundError: if there is no such file.
        """
        with _translated(key):
            size_bytes = self.size(key)
            stop = size_bytes if end is None else min(end, size_bytes)
            if start >= stop:
                return iter(())
        return self._parts(key, start, stop) if self._root is None else _read(self._root / key, key, start, stop)

    def fetch(self, key: str, path: Path, *, on_chunk: Callable[[], None] | None = None) -> StoredFile:
        """Copy a file out of storage to a new local path and hash it on the way; all of it is there then, or nothing.

        Raises:
            NotFoundError: if there is no such file.
            FileExistsError: if the path exists.
        """
        digest = hashlib.sha256()
        size_bytes = 0
        chunks = self.get_range(key)
        with path.open("xb") as file:
            try:
                for chunk in chunks:
                    with _translated():
                        file.write(chunk)
                    digest.update(chunk)
                    size_bytes += len(chunk)
                    if on_chunk is not None:
                        on_chunk()
            except BaseException:
                path.unlink(missing_ok=True)
                raise
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

    def pages(self, prefix: str, *, unchanged_since: datetime | None = None) -> Iterator[list[FoundFile]]:
        """The files under a folder, a page at a time; with `unchanged_since`, those last written before that time."""
        with _translated():
            pages = obstore.list(self._store, prefix, chunk_size=PAGE)
        while True:
            with _translated():
                page = next(pages, None)
            if page is None:
                return
            found = [
                FoundFile(meta["path"], meta["size"])
                for meta in page
                if unchanged_since is None or meta["last_modified"] < unchanged_since
            ]
            if found:
                yield found

    def list(self, prefix: str) -> list[str]:
        """Keys of the files under a folder."""
        return [file.key for page in self.pages(prefix) for file in page]

    def delete(self, key: str) -> None:
        """Delete a file; no error if it is already gone."""
        with _translated():
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return

    def discard(self, keys: Iterable[str]) -> None:
        """Delete files that no row names any more, as far as that works now; the sweep has the rest."""
        try:
            for key in keys:
                self.delete(key)
        except StorageError as error:
            log.warning("files_left_to_sweep", error=error.message)

    def delete_all(self, keys: Sequence[str]) -> None:
        """Delete files, several at a time; no error for those that are already gone."""
        with _translated():
            try:
                obstore.delete(self._store, keys)
            except FileNotFoundError:
                for key in keys:  # one was gone, and the rest may not have been tried
                    self.delete(key)

    def delete_prefix(self, prefix: str) -> None:
        """Delete every file under a folder."""
        self.delete_all(self.list(prefix))

    def unfinished(self, before: datetime) -> Iterator[Path]:
        """What killed writers have left in a local folder, last written before that time. Others may delete meanwhile.

        A bucket has no such files; its own rule deletes multipart uploads that nobody finishes.
        """
        if self._root is None:
            return
        with _translated():
            for path in self._root.rglob("*#*"):  # the local store's own names, which it never lists
                with suppress(FileNotFoundError):
                    if UNFINISHED.search(path.name) and path.is_file() and path.stat().st_mtime < before.timestamp():
                        yield path

    def delete_unfinished(self, before: datetime) -> None:
        """Delete what `unfinished` finds."""
        for path in self.unfinished(before):
            with _translated():
                path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise StorageError unless storage answers, and a local folder can be written."""
        with _translated():
            if self._root is None:
                next(iter(obstore.list(self._store, "datasets", chunk_size=1)), None)
            elif not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not writable", str(self._root))

    def _parts(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """One request after the other, each tried again by itself: no connection has to live as long as a download."""
        for at in range(start, stop, PART_BYTES):
            end = min(at + PART_BYTES, stop)
            with _translated(key):
                part = bytes(obstore.get_range(self._store, key, start=at, end=end))
            if len(part) != end - at:
                raise StorageError(f"Storage gave {len(part)} bytes of {key} where it was asked for {end - at}.")
            yield part


def _read(path: Path, key: str, start: int, stop: int) -> Iterator[bytes]:
    """Without the store, which reads local files at a twentieth of the speed. Goes on if the file is deleted."""
    with _translated(key):
        file = path.open("rb")
    with file:
        file.seek(start)
        while start < stop:
            with _translated():
                chunk = file.read(min(CHUNK_BYTES, stop - start))
            if not chunk:
                raise StorageError(f"{key} is damaged in storage: it ends early.")
            start += len(chunk)
            yield chunk


def _sync(path: Path, depth: int) -> None:
    # The store renames finished files into place but leaves it to the system when they reach the disk.
    for place in (path, *list(path.parents)[:depth]):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _translated(key: str = "") -> Iterator[None]:
    try:
        yield
    except (OSError, BaseError) as error:
        raise _failure(error, key) from error


def _failure(error: Exception, key: str) -> ServiceError:
    """The error that clients may see; addresses and names of the inside are only logged."""
    text = str(error)
    if isinstance(error, FileNotFoundError) and key and not is_missing_bucket(error):
        return NotFoundError(f"Storage holds no file {key!r}.")
    log.warning("storage_failed", error=text.partition("\n\n")[0])
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(sign in text for sign in FULL):
        return StorageFullError("No space is left in storage: delete datasets or enlarge the disk.")
    if is_refusal(error):
        return StorageError("Storage refuses this server's credentials: its operator must check the AWS_* variables.")
    if is_missing_bucket(error):
        return StorageError("Storage has no such bucket: the operator of this server must check SAM3_STORAGE_URL.")
    return StorageError("Storage does not work at the moment; the server's log says why.")
