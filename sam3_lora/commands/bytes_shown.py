"""Uploads and downloads, shown on a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sam3_lora.commands.service import notes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def bytes_shown(what: str) -> Iterator[Callable[[int, int | None], object]]:
    """What to call with bytes that are done, and all of them; nothing is shown where there is no terminal."""
    described = TextColumn("{task.description}")
    columns = (described, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, disable=not notes.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
