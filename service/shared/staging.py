"""The folder of uploads in progress, on the disk of each process that receives some."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path


def delete_leftovers(folder: Path, before: datetime) -> None:
    """Delete what uploads that broke off have left, last written before that time."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.stat().st_mtime < before.timestamp():
                path.unlink(missing_ok=True)
