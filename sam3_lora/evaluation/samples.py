"""The pictures of single images as files: one for each panel, and an index with the figures of each image."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

INDEX = "index.json"
FIGURES = ("file_name", "objects", "missed", "false_alarms", "categories", "instances", "unreadable")


def write_samples(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the rows of `worst_images` into a folder that is there as a whole or not at all.

    `index.json` lists the images in their order; `panels` names the JPEG file of each panel (image, truth, base,
    tuned) with its size; it is empty for an image that cannot be read.
    """
    fresh = folder.with_name(f".new-{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    index = []
    for position, row in enumerate(rows):
        panels = {}
        for name, panel in (row["panels"] or {}).items():
            file = f"{position}-{name}.jpg"
            (fresh / file).write_bytes(panel["jpeg"])
            panels[name] = {"file": file, "width": panel["width"], "height": panel["height"]}
        index.append({**{key: row[key] for key in FIGURES}, "panels": panels})
    (fresh / INDEX).write_text(json.dumps(index), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
