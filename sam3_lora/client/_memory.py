"""Which uploads were begun on this machine, so that a program that was killed goes on with its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sam3-lora" / "uploads"


class UploadMemory:
    """The upload that was begun for some content on some server. It may be forgotten: then all is sent anew."""

    def __init__(self, server: str, fingerprint: str) -> None:
        name = hashlib.sha256(f"{server}\0{fingerprint}".encode()).hexdigest()
        self._file = _folder() / name

    def recall(self) -> str | None:
        """Id of the upload, if one was begun."""
        with contextlib.suppress(OSError):
            return self._file.read_text(encoding="ascii").strip() or None
        return None

    def keep(self, upload_id: str) -> None:
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(upload_id, encoding="ascii")

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)
