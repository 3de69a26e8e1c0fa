"""One drawn dataset as other tools would have written it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from sam3_lora.coco.schema import CocoDataset, load
from sam3_lora.synthetic.coco_export import ANNOTATIONS, write_dataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONCEPTS = ("heart", "cross", "gear")


def draw(folder: Path, *, train: int = 6, valid: int = 3) -> Path:
    write_dataset(folder, concepts=CONCEPTS, train=train, valid=valid, seed=3)
    return folder


def loaded(root: Path, split: str) -> CocoDataset:
    return load(root / split / ANNOTATIONS)


def write_yolo(drawn: Path, folder: Path, data: str | None = None) -> Path:
    """The drawn outlines, `data.yaml` among them."""
    for split in ("train", "valid"):
        dataset = loaded(drawn, split)
        images, labels = folder / split / "images", folder / split / "labels"
        images.mkdir(parents=True)
        labels.mkdir()
        for image in dataset.images.values():
            shutil.copy(drawn / split / image.file_name, images)
            lines = []
            for annotation in dataset.annotations_of(image.id):
                assert isinstance(annotation.segmentation, list)
                sides = (image.width, image.height)
                values = [repr(value / sides[i % 2]) for i, value in enumerate(annotation.segmentation[0])]
                lines.append(f"{int(annotation.category_id) - 1} {' '.join(values)}")
            (labels / image.file_name).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    file = folder / "data.yaml"
    file.write_text(data or f"train: ../train/images\nval: ../valid/images\nnc: 3\nnames: {list(CONCEPTS)}\n")
    return file


def mask_of(polygon: list[float], size: tuple[int, int]) -> NDArray[np.bool_]:
    image = Image.new("L", size)
    ImageDraw.Draw(image).polygon(polygon, fill=1)
    return np.asarray(image) > 0


def save_mask(values_HW: NDArray[np.generic], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values_HW).save(path)
