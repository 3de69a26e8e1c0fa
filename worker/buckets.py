"""Fetch a dataset out of a bucket: an archive, or the objects of a folder as one."""

from __future__ import annotations

import tarfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import PurePosixPath
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError

from service.shared.checks import first_line
from service.shared.object_stores import PAGE, PART_BYTES, is_missing_bucket, is_refusal, open_bucket
from service.shared.sources import bucket_and_key
from worker.failures import SourceError, refuse_large

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from obstore import ObjectMeta
    from obstore.store import S3Store

    from service.shared.settings import Settings

MAX_OBJECTS = 1_000_000
AT_ONCE = 8
"""Objects that are fetched at the same time: of a small one nearly all of the time is waiting."""
LOOK_EVERY_S = 1.0
CHECK_NAME = "Check the names of bucket, folder and file, then create the dataset again."
TOO_SLOW = "Name a smaller dataset, or one nearer by; the operator sets the limit (SAM3_FETCH_TIMEOUT_S)."


@dataclass(frozen=True)
class _Object:
    """An object in one of its versions."""

    key: str
    size_bytes: int
    etag: str | None
    modified_at: datetime

    def is_other_than(self, listed: _Object) -> bool:
        """Whether it has changed since, as far as the server tells: not every one has entity tags."""
        if None not in (self.etag, listed.etag) and self.etag != listed.etag:
            return True
        return (self.size_bytes, self.modified_at) != (listed.size_bytes, listed.modified_at)


def fetch_from_bucket(uri: str, target: Path, settings: Settings, *, on_chunk: Callable[[], None]) -> None:
    """Write the archive that an s3 URI names to a new file; a folder becomes a tar, the same for the same objects.

    What changes while it is read is refused: nothing is put together of an old and a new version.

    Args:
        on_chunk: called every second or so; what it raises passes through.

    Raises:
        SourceError: says what was wrong, and whether another try may help.
    """
    bucket, key = bucket_and_key(uri)
    store = open_bucket(settings, bucket)
    deadline = time.monotonic() + settings.fetch_timeout_s

    def go_on() -> None:
        if time.monotonic() > deadline:
            message = f"{uri} took longer than {settings.fetch_timeout_s:g} s."
            raise SourceError("source_unavailable", message, TOO_SLOW)
        on_chunk()

    try:
        if key and not key.endswith("/"):
            found = _described(obstore.head(store, key))
            refuse_large(found.size_bytes, settings.max_upload_bytes)
            with target.open("xb") as file:
                for part in _parts(store, found):
                    file.write(part)
                    go_on()
        else:
            objects = _objects(store, key, uri, go_on)
            refuse_large(sum(each.size_bytes for each in objects), settings.max_upload_bytes)
            _pack(store, objects, key, target, go_on)
    except (OSError, BaseError) as error:
        raise _failure(error, uri) from error


def _objects(store: S3Store, folder: str, uri: str, go_on: Callable[[], None]) -> Sequence[_Object]:
    """All that lie in the folder, in the order of their keys, without those that only stand for folders."""
    found = []
    for page in obstore.list(store, folder.rstrip("/") or None, chunk_size=PAGE):
        found += [_described(each) for each in page]
        if len(found) > MAX_OBJECTS:
            message = f"{uri} holds more than {MAX_OBJECTS} objects."
            raise SourceError("source_too_large", message, "Put an archive of them into the bucket, and name that.")
        go_on()
    folders = {str(parent) for each in found for parent in PurePosixPath(each.key).parents}
    folders.add(folder.rstrip("/"))
    for each in found:
        if each.key in folders and each.size_bytes:
            message = f"{each.key!r} is both a file and a folder."
            raise SourceError("source_unavailable", message, "Rename one of them, then create the dataset again.")
    objects = sorted((each for each in found if each.key not in folders), key=lambda each: each.key)
    if not objects:
        raise SourceError("source_unavailable", f"There is nothing at {uri}, or no such folder.", CHECK_NAME)
    return objects


def _pack(store: S3Store, objects: Sequence[_Object], folder: str, target: Path, go_on: Callable[[], None]) -> None:
    """A tar of the objects. Small ones are fetched ahead; a large one takes its time, and no memory."""

    def fetch(found: _Object) -> bytes | None:
        return b"".join(_parts(store, found)) if found.size_bytes <= PART_BYTES else None

    with tarfile.open(target, "x:") as archive, ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = iter(objects)
        ahead = deque((found, pool.submit(fetch, found)) for found in islice(waiting, AT_ONCE))
        try:
            while ahead:
                found, fetched = ahead.popleft()
                while not wait([fetched], LOOK_EVERY_S).done:
                    go_on()
                member = tarfile.TarInfo(found.key.removeprefix(folder))
                member.size = found.size_bytes
                if (content := fetched.result()) is not None:
                    archive.addfile(member, BytesIO(content))
                else:
                    with TemporaryFile(dir=target.parent) as file:
                        for part in _parts(store, found):
                            file.write(part)
                            go_on()
                        file.seek(0)
                        archive.addfile(member, file)
                go_on()
                ahead.extend((found, pool.submit(fetch, found)) for found in islice(waiting, 1))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _parts(store: S3Store, found: _Object) -> Iterator[bytes]:
    """Its bytes, one request after the other, each tried again by itself."""
    for start in range(0, found.size_bytes, PART_BYTES):
        end = min(start + PART_BYTES, found.size_bytes)
        answer = obstore.get(store, found.key, options={"range": (start, end)})
        if _described(answer.meta).is_other_than(found):
            raise _changed(f"{found.key!r} changed while it was read.")
        part = bytes(answer.bytes())
        if len(part) != end - start:
            asked = f"where it was asked for {end - start}."
            raise _changed(f"The bucket gave {len(part)} bytes of {found.key!r} {asked}")
        yield part


def _changed(message: str) -> SourceError:
    hint = "Create the dataset again once nothing writes there."
    return SourceError("source_unavailable", message, hint, retryable=True)


def _described(meta: ObjectMeta) -> _Object:
    etag = (meta["e_tag"] or "").strip('"') or None
    # Lists may tell fractions of a second, answers do not.
    return _Object(meta["path"], meta["size"], etag, meta["last_modified"].replace(microsecond=0))


def _failure(error: Exception, uri: str) -> SourceError:
    if is_missing_bucket(error):
        return SourceError("source_unavailable", f"There is no bucket of {uri}.", CHECK_NAME)
    if isinstance(error, FileNotFoundError):
        return SourceError("source_unavailable", f"There is nothing at {uri}; a folder ends with a slash.", CHECK_NAME)
    if is_refusal(error):
        hint = "Their operator must check the AWS_* variables, and what they may read; then create the dataset again."
        return SourceError("source_unavailable", f"The bucket of {uri} refuses the workers' credentials.", hint)
    reason = f"{type(error).__name__}: {first_line(error)}"[:200]
    message, hint = f"{uri} could not be read ({reason}).", "Create the dataset again once the bucket answers."
    return SourceError("source_unavailable", message, hint, retryable=True)
