"""Write drawn scenes as a COCO dataset in Roboflow's layout: `train|valid/_annotations.coco.json` beside the images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sam3_lora.synthetic.scenes import KNOWN, Scene, draw_scene

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ANNOTATIONS = "_annotations.coco.json"


def write_dataset(
    folder: Path,
    *,
    concepts: Sequence[str],
    train: int,
    valid: int,
    seed: int,
    distractors: Sequence[str] = tuple(KNOWN),
) -> None:
    """Draw a dataset that annotates the shapes `concepts`, among unannotated `distractors`.

    Args:
        folder: made; `train/` and `valid/` are written into it.
        train, valid: number of images.
    """
    for number, (split, count) in enumerate((("train", train), ("valid", valid))):
        rng = np.random.default_rng([seed, number])
        # each concept is drawn about as often as all distractors together
        names = [*distractors, *(name for name in concepts for _ in range(max(1, len(distractors) // 2)))]
        scenes = [draw_scene(rng, shapes=names, count=(2, 4)) for _ in range(count)]
        write_split(folder / split, scenes, concepts)


def write_split(folder: Path, scenes: Sequence[Scene], concepts: Sequence[str]) -> None:
    """Write scenes as JPEG images with COCO polygons of the shapes `concepts`."""
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, start=1):
        name = f"scene_{image_id:04d}.jpg"
        height, width = scene.pixels.shape[:2]
        Image.fromarray(scene.pixels).save(folder / name, quality=92)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for item in scene.objects:
            if item.shape in concepts:
                left, top, right, bottom = item.box_xyxy
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": list(concepts).index(item.shape) + 1,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": float(item.mask.sum()),
                        "segmentation": [_clipped(item.polygon, width, height)],
                        "iscrowd": 0,
                    }
                )
    categories = [{"id": number, "name": name} for number, name in enumerate(concepts, start=1)]
    body = {"images": images, "annotations": annotations, "categories": categories}
    (folder / ANNOTATIONS).write_text(json.dumps(body), encoding="utf-8")


def _clipped(polygon: Sequence[tuple[float, float]], width: int, height: int) -> list[float]:
    return [round(v, 2) for x, y in polygon for v in (min(max(x, 0.0), width), min(max(y, 0.0), height))]
