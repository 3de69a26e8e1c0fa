"""Bring a dataset here: from a host, a bucket or this machine's disk, or by drawing it. Its archive goes to storage."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from service.shared.errors import SourceRefusedError
from service.shared.sources import S3, check_path, check_uri
from worker.buckets import fetch_from_bucket
from worker.download import download
from worker.failures import SourceError, refuse_large

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.shared.settings import Settings

CHUNK_BYTES = 2**20
DEMO_CONCEPTS = ("heart", "cross")  # of those that sam3-tiny was not pretrained on
DEMO_TRAIN, DEMO_VALID = 120, 16


def fetch_archive(source: dict[str, str], target: Path, settings: Settings, *, on_chunk: Callable[[], None]) -> None:
    """Write the archive that a source names to a new file; a folder becomes a tar, the same for the same files.

    Raises:
        SourceError: if it cannot be read, or may not be: settings may have changed since it was accepted.
    """
    try:
        if source["type"] == "uri":
            check_uri(settings, source["uri"])
            _fetch(source["uri"], target, settings, on_chunk)
        elif source["type"] == "demo":
            _draw(target, settings, on_chunk)
        else:
            _copy(_resolved(check_path(settings, source["path"]), settings), target, settings, on_chunk)
    except SourceRefusedError as error:
        # It was accepted when the dataset was created.
        hint = "The server's settings have changed, or its workers have others: name an allowed place, or upload it."
        raise SourceError("source_refused", error.message, hint) from None


def _fetch(uri: str, target: Path, settings: Settings, on_chunk: Callable[[], None]) -> None:
    if uri.startswith(S3):
        fetch_from_bucket(uri, target, settings, on_chunk=on_chunk)
        return
    download(
        uri,
        target,
        max_bytes=settings.max_upload_bytes,
        idle_timeout_s=settings.upload_idle_timeout_s,
        timeout_s=settings.fetch_timeout_s,
        on_chunk=on_chunk,
    )


def _draw(target: Path, settings: Settings, on_chunk: Callable[[], None]) -> None:
    from sam3_lora.synthetic.coco_export import write_dataset  # numpy: a worker without it says so when it starts

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        drawn = Path(scratch) / "drawn"
        write_dataset(drawn, concepts=DEMO_CONCEPTS, train=DEMO_TRAIN, valid=DEMO_VALID, seed=7)
        _pack(drawn, target, settings.max_upload_bytes, on_chunk)


def _resolved(path: Path, settings: Settings) -> Path:
    """The place itself, which still lies under an allowed root once links are followed."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        hint = "Check the path: it is one of the worker's machine, where the folder must be mounted."
        raise SourceError("source_unavailable", f"The worker finds no {path}.", hint) from error
    if not any(real.is_relative_to(root.resolve()) for root in settings.dataset_roots):
        message = f"{path} leads out of the folders that may be read."
        raise SourceError("source_refused", message, "Name the place itself, without links, in one of those folders.")
    return real


def _copy(source: Path, target: Path, settings: Settings, on_chunk: Callable[[], None]) -> None:
    limit = settings.max_upload_bytes
    try:
        if source.is_dir():
            _pack(source, target, limit, on_chunk)
            return
        if not source.is_file():
            message = f"{source} is neither a file nor a folder."
            raise SourceError("source_unavailable", message, "Name an archive, or the folder of the dataset.")
        with source.open("rb") as content, target.open("xb") as file:
            while chunk := content.read(CHUNK_BYTES):
                file.write(chunk)
                refuse_large(file.tell(), limit)
                on_chunk()
    except PermissionError as error:
        hint = "Let the worker's user read it, then create the dataset again."
        raise SourceError("source_unavailable", f"The worker may not read {error.filename}.", hint) from error


def _pack(folder: Path, target: Path, limit: int, on_chunk: Callable[[], None]) -> None:
    """A tar of the regular files, links left out, that depends on nothing but their names and contents."""
    packed = 0
    with tarfile.open(target, "x:") as archive:
        for path in _regular_files(folder):
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as content:
                member = tarfile.TarInfo(path.relative_to(folder).as_posix())
                member.size = os.fstat(content.fileno()).st_size
                packed += member.size
                refuse_large(packed, limit)
                archive.addfile(member, content)
            on_chunk()


def _regular_files(folder: Path) -> Iterator[Path]:
    for top, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(top, name)
            if path.is_file() and not path.is_symlink():
                yield path
