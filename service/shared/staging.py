"""The folder of uploads in progress, on the disk of each process that receives some."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path


def leftovers(folder: Path, before: datetime) -> Iterator[Path]:
    """What uploads that broke off have left, last written before that time. Others may delete files meanwhile."""
    if folder.is_dir():
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before.timestamp():
                    yield path


def delete_leftovers(folder: Path, before: datetime) -> None:
    """Delete what `leftovers` finds."""
    for path in leftovers(folder, before):
        path.unlink(missing_ok=True)
