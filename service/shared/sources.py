"""Which places datasets may be fetched from: the API asks before it accepts one, a worker again before it fetches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from service.shared.errors import SourceRefusedError, fault

if TYPE_CHECKING:
    from service.shared.settings import Settings

HTTPS_PORT = 443
PRINTABLE = re.compile(r"[\x21-\x7e]+")


def check_uri(settings: Settings, uri: str) -> tuple[str, int]:
    """Host and port of a URI that may be fetched.

    Raises:
        SourceRefusedError: says why it may not.
    """
    if not settings.dataset_uri_hosts:
        raise _refusal("/source/uri", "This server fetches no URIs: its operator must set SAM3_DATASET_URI_HOSTS.")
    try:
        parts = urlsplit(uri)
        host, port = (parts.hostname or "").lower(), parts.port or HTTPS_PORT
    except ValueError:
        raise _refusal("/source/uri", "The URI cannot be read.") from None
    if parts.scheme != "https" or not host or "@" in parts.netloc or not PRINTABLE.fullmatch(uri):
        raise _refusal("/source/uri", "Give an https:// URI without a user or password.")
    if (host if port == HTTPS_PORT else f"{host}:{port}") not in settings.dataset_uri_hosts:
        raise _refusal("/source/uri", f"This server fetches only from {', '.join(settings.dataset_uri_hosts)}.")
    return host, port


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
    if source["type"] == "uri":
        parts = urlsplit(source["uri"])
        return {"type": "uri", "uri": f"{parts.scheme}://{parts.netloc}{parts.path}"}
    return {name: value for name, value in source.items() if name != "sha256"}


def _refusal(pointer: str, message: str) -> SourceRefusedError:
    return SourceRefusedError(message, errors=[fault(pointer, "source_refused", message)])
