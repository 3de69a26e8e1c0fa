"""Folders of workers that have died, on the machine where they ran."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

UNBORN_S = 60
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def datasets_folder(root: Path) -> Path:
    """Where the workers of a machine keep extracted datasets, until it starts again."""
    # Extracted files are never synced: after a power cut a complete-looking dataset may hold empty files.
    return root / f"datasets-{BOOT_ID.read_text().strip()}"


def remove_abandoned(root: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove, unless it is a `dry_run`, what no living worker uses below its workspace; which folders that are."""
    found = []
    for folder, held in _abandoned(root):
        with held:
            found.append(folder)
            if not dry_run:
                remove(folder)
    return found


def locked(path: Path, mode: int) -> IO[bytes]:
    """The open file, locked until it is closed or its process ends.

    Raises:
        BlockingIOError: with LOCK_NB, if another holds it.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, mode)
    except BaseException:
        file.close()
        raise
    return file


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _abandoned(root: Path) -> Iterator[tuple[Path, contextlib.AbstractContextManager[object]]]:
    """Folders, each with what has to be held while it is removed."""
    for folder in root.glob("datasets-*"):
        if folder != datasets_folder(root):
            yield folder, contextlib.nullcontext()
    for folder in root.glob("worker-*"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            yield folder, locked(folder / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
    for folder in root.glob("unborn-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > UNBORN_S:
                yield folder, contextlib.nullcontext()
