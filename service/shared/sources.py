"""Which places datasets may be fetched from: the API asks before it accepts one, a worker again before it fetches."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from service.shared.errors import SourceRefusedError, fault

if TYPE_CHECKING:
    from service.shared.settings import Settings

HTTPS_PORT = 443
PRINTABLE = re.compile(r"[\x21-\x7e]+")
S3 = "s3://"
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_uri(settings: Settings, uri: str) -> None:
    """Raise SourceRefusedError, which says why, unless an https or s3 URI may be fetched."""
    if uri.startswith(S3):
        _check_bucket(settings, uri)
    else:
        _check_https(settings, uri)


def name_of(uri: str) -> str:
    """What a dataset of the URI is called where nobody says: its last part, else the bucket or host."""
    if uri.startswith(S3):
        bucket, key = bucket_and_key(uri)
        return PurePosixPath(key).name or bucket
    parts = urlsplit(uri)
    return PurePosixPath(unquote(parts.path)).name or parts.hostname or ""


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Of an s3 URI; keys stand in it as they are. The key of a folder ends with a slash, that of a bucket is empty."""
    bucket, _, key = uri.removeprefix(S3).partition("/")
    return bucket, key


def _check_bucket(settings: Settings, uri: str) -> None:
    if not settings.dataset_buckets:
        raise _refusal("/source/uri", "This server reads no buckets: its operator must set SAM3_DATASET_BUCKETS.")
    bucket, key = bucket_and_key(uri)
    parts = key.removesuffix("/").split("/") if key else []
    if not bucket or {"", ".", ".."} & set(parts) or CONTROL.search(uri):
        raise _refusal("/source/uri", "Give s3://bucket/file, or s3://bucket/folder/ with a slash at its end.")
    asked = [bucket, *parts]
    for place in settings.dataset_buckets:
        allowed = place.removeprefix(S3).split("/")
        if asked[: len(allowed)] == allowed:
            return
    raise _refusal("/source/uri", f"This server reads only below {', '.join(settings.dataset_buckets)}.")


def _check_https(settings: Settings, uri: str) -> None:
    if not settings.dataset_uri_hosts:
        raise _refusal("/source/uri", "This server fetches no URIs: its operator must set SAM3_DATASET_URI_HOSTS.")
    try:
        parts = urlsplit(uri)
        host, port = (parts.hostname or "").lower(), parts.port or HTTPS_PORT
    except ValueError:
        raise _refusal("/source/uri", "The URI cannot be read.") from None
    if parts.scheme != "https" or not host or "@" in parts.netloc or not PRINTABLE.fullmatch(uri):
        raise _refusal("/source/uri", "Give an https:// URI without a user or password, or an s3:// URI.")
    if (host if port == HTTPS_PORT else f"{host}:{port}") not in settings.dataset_uri_hosts:
        raise _refusal("/source/uri", f"This server fetches only from {', '.join(settings.dataset_uri_hosts)}.")


def check_path(settings: Settings, path: str) -> Path:
    """The path, if it lies under an allowed root as it is written; links are for the worker to resolve.

    Raises:
        SourceRefusedError: says why it may not be read.
    """
    if not settings.dataset_roots:
        raise _refusal("/source/path", "This server reads no paths: its operator must set SAM3_DATASET_ROOTS.")
    asked = Path(path)
    inside = asked.is_absolute() and ".." not in asked.parts and "\0" not in path
    if not inside or not any(asked.is_relative_to(root) for root in settings.dataset_roots):
        roots = ", ".join(str(root) for root in settings.dataset_roots)
        raise _refusal("/source/path", f"Give an absolute path without '..' under one of: {roots}.")
    return asked


def shown(source: dict[str, str] | None) -> dict[str, str]:
    """A source as clients may see it: the query of a URI can hold a signature."""
    if source is None:
        return {"type": "file"}
    if source["type"] == "uri" and not source["uri"].startswith(S3):
        parts = urlsplit(source["uri"])
        return {"type": "uri", "uri": f"{parts.scheme}://{parts.netloc}{parts.path}"}
    return {name: value for name, value in source.items() if name != "sha256"}


def _refusal(pointer: str, message: str) -> SourceRefusedError:
    return SourceRefusedError(message, errors=[fault(pointer, "source_refused", message)])
