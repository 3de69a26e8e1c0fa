"""Scratch space of a worker on its local disk: one folder per attempt, and a cache of extracted datasets.

Nothing here outlives its use: an attempt's folder goes with the attempt, a dead worker's folders go at the next
start of any worker of the same data folder, and least recently used datasets make room for new ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import secrets
import time
from typing import TYPE_CHECKING

from service.shared.scratch import datasets_folder, locked, remove, remove_abandoned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEPT_DATASETS = 4
SHA256 = re.compile(r"[0-9a-f]{64}")


class Workspace:
    """The folder `root`, shared by all workers of a machine; this object is one worker's part of it."""

    def __init__(self, root: Path) -> None:
        """Claim a folder of our own and remove what dead workers left."""
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._datasets = datasets_folder(root)
        self._datasets.mkdir(exist_ok=True)
        remove_abandoned(root)
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        unborn, self._own = root / f"unborn-{name}", root / f"worker-{name}"
        unborn.mkdir()
        self._lock = locked(unborn / "lock", fcntl.LOCK_EX)
        unborn.rename(self._own)  # from here on it is always locked

    def close(self) -> None:
        """Remove this worker's folder."""
        remove(self._own)
        self._lock.close()

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[Path]:
        """A fresh folder that is removed afterwards, whatever happens."""
        folder = self._own / f"{name}-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            yield folder
        finally:
            remove(folder)

    @contextlib.contextmanager
    def dataset(
        self, sha256: str, extract: Callable[[Path], object], on_wait: Callable[[], object] = lambda: None
    ) -> Iterator[Path]:
        """The extracted archive with this hash, kept from eviction meanwhile.

        Args:
            extract: called with a folder to create, if no worker has extracted the archive yet; others wait for it.
            on_wait: called now and then while another worker extracts; what it raises passes through.
        """
        if not SHA256.fullmatch(sha256):
            raise ValueError(f"not a SHA-256: {sha256!r}")
        folder = self._datasets / sha256
        lock = self._datasets / f"{sha256}.lock"
        while True:
            try:
                shared = locked(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # another worker extracts it, for minutes or, if it is frozen, for ever
                on_wait()
                time.sleep(random.uniform(0.05, 0.2))
                continue
            with shared:
                if folder.is_dir():
                    os.utime(folder)
                    yield folder
                    return
            self._extract_once(lock, folder, extract)

    def _extract_once(self, lock: Path, folder: Path, extract: Callable[[Path], object]) -> None:
        try:
            held = locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(random.uniform(0.05, 0.2))  # another worker was faster: look again
            return
        with held, self.attempt("extract") as scratch:
            if not folder.is_dir():
                self._evict()
                extract(scratch / "dataset")
                (scratch / "dataset").rename(folder)

    def _evict(self) -> None:
        """Make room for one more dataset, sparing those in use."""
        folders = sorted((path for path in self._datasets.iterdir() if path.is_dir()), key=lambda p: p.stat().st_mtime)
        excess = len(folders) - KEPT_DATASETS + 1
        for folder in folders:
            if excess > 0 and self._evict_unused(folder):
                excess -= 1

    def _evict_unused(self, folder: Path) -> bool:
        try:
            lock = locked(folder.with_name(f"{folder.name}.lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        with lock, self.attempt("evicted") as scratch:
            folder.rename(scratch / "dataset")  # gone at once for others, then deleted
        return True
