"""Archives that come in a form and are to be datasets: what can be told of one before a worker checks it."""

import re
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from fastapi import Request

from service.api.deps import Services
from service.api.forms import FormFile, receive_form
from service.shared.errors import UnsupportedMediaTypeError, invalid
from service.usecases.datasets import MAX_NAME

# zip (also an empty one), gzip, bzip2, xz
ARCHIVE_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
SHA256 = re.compile(r"[0-9a-f]{64}")
FIELDS = frozenset({"name", "sha256"})


def form_body(**further: Any) -> dict[str, Any]:
    """The form in an OpenAPI document, with `further` fields that are needed."""
    schema = {
        "type": "object",
        "required": ["file", *further],
        "additionalProperties": False,
        "properties": {
            "file": {
                "type": "string",
                "format": "binary",
                "description": "Zip or tar archive (gzip, bzip2 or xz) of images and COCO JSON.",
            },
            **further,
            "name": {"type": "string", "maxLength": MAX_NAME, "description": "Default: the file's name."},
            "sha256": {
                "type": "string",
                "pattern": "^[0-9a-f]{64}$",
                "description": "Expected hash of the file; an upload that arrives changed is refused.",
            },
        },
    }
    return {"multipart/form-data": {"schema": schema}}


def receive_archive(
    request: Request, found: Services, *, further: Collection[str] = ()
) -> AbstractAsyncContextManager[FormFile]:
    """The form with the fields of every archive and `further` ones; its file is gone when the context ends."""
    return receive_form(
        request,
        found.settings.staging_dir,
        known_fields=FIELDS | frozenset(further),
        max_bytes=found.settings.max_upload_bytes,
        idle_timeout_s=found.settings.upload_idle_timeout_s,
    )


def checked_name(file: FormFile) -> str:
    """The dataset's name, if the file is what it claims to be.

    Raises:
        InvalidRequestError: if the fields `name` or `sha256` of its form are wrong.
        UnsupportedMediaTypeError: if it is no archive.
    """
    expected = file.fields.get("sha256")
    if expected is not None and not SHA256.fullmatch(expected):
        raise invalid("/sha256", "invalid_sha256", "must be 64 lower-case hexadecimal digits")
    if expected is not None and expected != file.sha256:
        raise invalid("/sha256", "sha256_mismatch", f"the file that arrived has SHA-256 {file.sha256}")
    name = file.fields.get("name", file.filename)
    if not 1 <= len(name) <= MAX_NAME:
        raise invalid("/name", "invalid_name", f"must have 1 to {MAX_NAME} characters")
    if not _is_archive(file.path):
        raise UnsupportedMediaTypeError("The file is neither a zip nor a tar archive (plain, gzip, bzip2 or xz).")
    return name


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(512)
    return head.startswith(ARCHIVE_MAGIC) or head[257:262] == b"ustar"
