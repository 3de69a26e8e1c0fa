"""Drawn images of a dataset: what is known of each, as one process writes it and another reads it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "pictures.jsonl"
MAX_INDEX_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn image: its file is `<number>.webp`, counted from 0; sizes are those of the image itself."""

    split: str
    file_name: str
    width: int
    height: int
    instances: int


def append(folder: Path, picture: Picture) -> None:
    """Note one more picture, whose file is complete."""
    with (folder / INDEX).open("a", encoding="utf-8") as index:
        index.write(json.dumps(asdict(picture)) + "\n")


def read(folder: Path) -> list[tuple[Path, Picture]]:
    """The pictures that were noted, and their files; not what a process that was ended left half-written."""
    path = folder / INDEX
    if not path.is_file() or path.stat().st_size > MAX_INDEX_BYTES:
        return []
    names = [field.name for field in fields(Picture)]
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True)):
        if not line.endswith("\n"):
            break
        values = json.loads(line)
        found.append((folder / f"{number}.webp", Picture(**{name: values[name] for name in names})))
    return found
