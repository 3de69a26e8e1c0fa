"""Small real datasets for tests, as plain records that a case may spoil before they are written."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 40, 30


def picture(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT), format_: str = "JPEG", **options: Any) -> bytes:
    """A picture that no other seed gives."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.putpixel((0, 0), (seed % 256, seed // 256, 0))
    image.paste((seed * 37 % 256, seed * 91 % 256, seed * 13 % 256), (4, 4, 20, 20))
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def records(images: int = 12, prefix: str = "img") -> dict[str, Any]:
    """A Roboflow export of one split: an unused super-category, a polygon, an RLE and a bare box in turn."""
    annotations = [
        {
            "id": index,
            "image_id": index,
            "category_id": 1 + index % 2,
            "bbox": [4, 4, 16, 16],
            "area": 256,
            "iscrowd": 0,
            "segmentation": [
                [[4, 4, 20, 4, 20, 20, 4, 20]],
                {"size": [HEIGHT, WIDTH], "counts": [30 * 4, 30, HEIGHT * WIDTH - 150]},
                [],
            ][index % 3],
        }
        for index in range(images)
    ]
    return {
        "info": {"year": "2024"},
        "licenses": [],
        "categories": [
            {"id": 0, "name": "things", "supercategory": "none"},
            {"id": 1, "name": "bolt", "supercategory": "things"},
            {"id": 2, "name": "nut", "supercategory": "things"},
        ],
        "images": [
            {"id": index, "file_name": f"{prefix}_{index}.jpg", "width": WIDTH, "height": HEIGHT}
            for index in range(images)
        ],
        "annotations": annotations,
    }


def write_split(folder: Path, content: dict[str, Any], first_seed: int) -> None:
    """Images and `_annotations.coco.json` in one folder."""
    folder.mkdir(parents=True)
    for index, image in enumerate(content["images"]):
        (folder / image["file_name"]).write_bytes(picture(first_seed + index))
    write_json(folder, content)


def write_json(folder: Path, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "_annotations.coco.json").write_bytes(text.encode("utf-8", "surrogatepass"))


def write_roboflow(root: Path) -> Path:
    """A valid dataset of 12 training and 3 validation images."""
    write_split(root / "train", records(), 0)
    write_split(root / "valid", records(3, "val"), 1000)
    return root
