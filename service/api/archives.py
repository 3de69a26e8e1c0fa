"""Archives that come in a form and are to be datasets: what can be told of one before a worker checks it."""

import re
from pathlib import Path

from service.api.forms import FormFile
from service.shared.errors import InvalidRequestError, UnsupportedMediaTypeError
from service.usecases.datasets import MAX_NAME

# zip (also an empty one), gzip, bzip2, xz
ARCHIVE_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
SHA256 = re.compile(r"[0-9a-f]{64}")


def checked_name(file: FormFile) -> str:
    """The dataset's name, if the file is what it claims to be.

    Raises:
        InvalidRequestError: if the fields `name` or `sha256` of its form are wrong.
        UnsupportedMediaTypeError: if it is no archive.
    """
    expected = file.fields.get("sha256")
    if expected is not None and not SHA256.fullmatch(expected):
        raise _fault("/sha256", "invalid_sha256", "must be 64 lower-case hexadecimal digits")
    if expected is not None and expected != file.sha256:
        raise _fault("/sha256", "sha256_mismatch", f"the file that arrived has SHA-256 {file.sha256}")
    name = file.fields.get("name", file.filename)
    if not 1 <= len(name) <= MAX_NAME:
        raise _fault("/name", "invalid_name", f"must have 1 to {MAX_NAME} characters")
    if not _is_archive(file.path):
        raise UnsupportedMediaTypeError("The file is neither a zip nor a tar archive (plain, gzip, bzip2 or xz).")
    return name


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(512)
    return head.startswith(ARCHIVE_MAGIC) or head[257:262] == b"ustar"


def _fault(pointer: str, code: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{pointer}: {message}", errors=[{"pointer": pointer, "code": code, "message": message}])
