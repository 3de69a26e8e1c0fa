"""What trainers noted while they ran: who runs now, and whether two of one job ever did at the same time."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

RUNNING_S = 0.6  # since the last beat


@dataclass
class Life:
    """A trainer, from its first line to its last (seconds of the monotonic clock)."""

    job: str
    epoch: int
    pid: int
    begun: float
    last: float
    step: int
    has_ended: bool = False


class Journal:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.lives: dict[tuple[str, int, int], Life] = {}

    def read(self) -> None:
        """Take in what was written since; an unfinished last line waits."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole, _, _ = content.rpartition(b"\n")
        self._offset += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            self._note(json.loads(line))

    def _note(self, line: dict) -> None:
        key = (line["job"], line["epoch"], line["pid"])
        life = self.lives.setdefault(key, Life(*key, line["t"], line["t"], line["step"]))
        life.last, life.step = max(life.last, line["t"]), line["step"]
        life.has_ended |= line["what"] == "end"

    def running(self, now: float) -> list[Life]:
        """Trainers that live, in the order in which they began."""
        self.read()
        fresh = [life for life in self.lives.values() if not life.has_ended and now - life.last < RUNNING_S]
        return [life for life in fresh if _is_trainer(life.pid)]


def overlaps(lives: Iterable[Life]) -> list[tuple[Life, Life]]:
    """Pairs of trainers of one job that ran at the same time."""
    found = []
    for _, group in itertools.groupby(sorted(lives, key=lambda life: (life.job, life.begun)), lambda life: life.job):
        latest: Life | None = None
        for life in group:
            if latest is not None and life.begun < latest.last:
                found.append((latest, life))
            latest = life if latest is None or life.last > latest.last else latest
    return found


def _is_trainer(pid: int) -> bool:
    try:
        return b"trainer.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
