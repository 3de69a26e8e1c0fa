"""Whole runs on data as people really have it: what can be trained on is, what cannot is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_codec

from sam3_lora.config import RunConfig
from sam3_lora.errors import ConfigError, DatasetError
from sam3_lora.events import Event, EventType
from sam3_lora.training.run import train

WIDTH, HEIGHT = 96, 64
LAST = {"evaluation": {"baseline": False, "every_epochs": 9}}


class Dataset:
    """A COCO folder that is built up by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.body: dict[str, Any] = {"images": [], "annotations": [], "categories": []}

    def category(self, name: str, **fields: Any) -> int:
        self.body["categories"].append({"id": len(self.body["categories"]), "name": name, **fields})
        return self.body["categories"][-1]["id"]

    def image(self, name: str, mode: str = "RGB", **save: Any) -> int:
        number = len(self.body["images"]) + 1
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        if mode == "I;16":
            picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        elif mode != "RGB":
            picture = picture.convert(mode)
        if save.get("exif"):
            picture = picture.transpose(Image.Transpose.ROTATE_90)  # stored upright by the tag
        picture.save(self.folder / name, **save)
        self.body["images"].append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        return number

    def annotate(self, image: int, category: int, x: float, y: float, w: float, h: float, **fields: Any) -> None:
        number = len(self.body["annotations"]) + 1
        record = {"id": number, "image_id": image, "category_id": category, "bbox": [x, y, w, h], "iscrowd": 0}
        self.body["annotations"].append({**record, "area": w * h, **fields})

    def options(self) -> dict[str, Any]:
        file = self.folder / "annotations.json"
        file.write_text(json.dumps(self.body))
        none = {"val_img_folder": None, "val_ann_file": None}
        return {"train_img_folder": str(self.folder), "train_ann_file": str(file), "val_fraction": 0.0, **none}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path / "data")


def polygon(x: float, y: float, w: float, h: float) -> dict[str, Any]:
    return {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}


def compressed(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    encoded = rle_codec.encode(mask)
    return {"segmentation": {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}}


def uncompressed(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    flat, counts, value = mask.flatten(order="F"), [0], 0
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}}


def losses(config: RunConfig) -> tuple[list[float], Any]:
    events: list[Event] = []
    report = train(config, reporter=events.append)
    values = [e.data["values"] for e in events if e.type is EventType.METRICS]
    return [v["train/loss"] for v in values if "train/loss" in v], report


def test_every_kind_of_image_and_annotation_in_one_run(make_config: Callable[..., RunConfig], dataset: Dataset):
    things = dataset.category("things", supercategory="none")  # Roboflow's, unused
    screw = dataset.category("hex_screw", supercategory="things")
    same = dataset.category("Hex Screw", supercategory="things")
    bolt = dataset.category("bolt", supercategory="things")
    dataset.category("never drawn", supercategory="things")
    assert things == 0
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to view
    box = (20, 10, 30, 25)
    dataset.annotate(dataset.image("colour.jpg"), screw, *box, **polygon(*box))
    dataset.annotate(dataset.image("palette.png", "P"), same, *box, **compressed(*box))
    dataset.annotate(dataset.image("print.jpg", "CMYK"), bolt, *box, **uncompressed(*box))
    dataset.annotate(dataset.image("deep.png", "I;16"), bolt, *box, segmentation=[])  # a box only
    dataset.annotate(dataset.image("clear.png", "RGBA"), screw, *box, **polygon(*box))
    dataset.annotate(dataset.image("turned.jpg", exif=exif), screw, *box, **polygon(*box))
    mask_only = dataset.image("grey.png", "L")
    dataset.annotate(mask_only, bolt, *box, **compressed(*box))
    del dataset.body["annotations"][-1]["bbox"]
    crowded = dataset.image("crowd.jpg")
    dataset.annotate(crowded, screw, 0, 0, 90, 60, iscrowd=1, **uncompressed(0, 0, 90, 60))
    tiny = dataset.image("tiny.jpg")
    dataset.annotate(tiny, screw, 5, 5, 1, 1, **polygon(5, 5, 1, 1))
    dataset.annotate(tiny, bolt, 80, 50, 60, 60, **polygon(80, 50, 60, 60))  # reaches out of the image
    dataset.image("nothing on it.jpg")
    config = make_config(dataset=dataset.options(), training={"max_epochs": 2, "batch_size": 3})
    values, report = losses(config)
    assert len(values) == 8  # ten images, three at a time, twice
    assert all(math.isfinite(value) for value in values)
    assert any("share the text 'hex screw'" in notice for notice in report.notices)
    assert any("never drawn" in notice for notice in report.notices)
    assert any("'things' is only the others' super-category" in notice for notice in report.notices)


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_boxes_alone_and_masks_alone(make_config: Callable[..., RunConfig], dataset: Dataset, kind: str):
    category = dataset.category("bolt")
    for number in range(4):
        image = dataset.image(f"{number}.png")
        dataset.annotate(image, category, 20, 10, 30, 25, **({} if kind == "boxes" else polygon(20, 10, 30, 25)))
        if kind == "masks":
            del dataset.body["annotations"][-1]["bbox"]
    values, report = losses(make_config(dataset={**dataset.options(), "val_fraction": 0.5}, training={"max_epochs": 1}))
    assert all(math.isfinite(value) for value in values)
    found = report.best["evaluation"]["metrics"]
    assert found["bbox_mAP"] is not None
    assert (found["segm_mAP"] is None) == (kind == "boxes")


def test_more_objects_than_the_model_has_queries(make_config: Callable[..., RunConfig], dataset: Dataset):
    category = dataset.category("bolt")
    for number in range(2):
        image = dataset.image(f"{number}.png")
        for index in range(250):
            x, y = 4 * (index % 24), 4 * (index // 24)
            dataset.annotate(image, category, x, y, 4, 4, **polygon(x, y, 4, 4))
    options = {**dataset.options(), "max_ann_per_img": 220, "min_scale": 0.9}
    values, _ = losses(make_config(dataset=options, training={"max_epochs": 1}, **LAST))
    assert all(math.isfinite(value) for value in values)


def test_a_batch_larger_than_the_set_is_the_set(make_config: Callable[..., RunConfig], dataset: Dataset):
    category = dataset.category("bolt")
    dataset.annotate(dataset.image("one.png"), category, 20, 10, 30, 25, **polygon(20, 10, 30, 25))
    training = {"max_epochs": 2, "batch_size": 64, "gradient_accumulation_steps": 8, "warmup_steps": 1000}
    values, report = losses(make_config(dataset=dataset.options(), training=training, **LAST))
    assert len(values) == report.steps == 2


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (
            lambda d: (d.folder / "a.jpg").write_bytes((d.folder / "a.jpg").read_bytes()[:900]),
            "cannot read image a.jpg",
        ),
        (lambda d: (d.folder / "a.jpg").write_bytes(b""), "cannot read image a.jpg"),
        (lambda d: (d.folder / "a.jpg").unlink(), "cannot read image a.jpg"),
        (lambda d: d.body["images"][0].update(width=50), "a.jpg is 96 x 64"),
        (lambda d: d.body["images"].append(d.body["images"][0]), "another image has the id 1"),
        (lambda d: d.body["categories"].append(d.body["categories"][0]), "another category has the id 0"),
        (lambda d: d.category("bolt"), "another category has the name 'bolt'"),
        (lambda d: d.body["annotations"][0].update(category_id=77), "category"),
        (lambda d: d.body["annotations"][0].update(image_id=77), "image"),
        (lambda d: d.body["annotations"][0].update(bbox=[1, 2, "x", 4]), "bbox"),
        (lambda d: d.body["annotations"].clear() or d.body["categories"].clear(), "no object to learn from"),
        (lambda d: d.body["annotations"].clear(), "no object to learn from"),
        (lambda d: d.body.update(images=[], annotations=[]), "no object to learn from"),
    ],
)
def test_what_cannot_be_trained_on_is_named(
    make_config: Callable[..., RunConfig], dataset: Dataset, spoil: Callable[[Dataset], object], named: str
):
    category = dataset.category("bolt")
    dataset.annotate(dataset.image("a.jpg"), category, 20, 10, 30, 25, **polygon(20, 10, 30, 25))
    spoil(dataset)
    config = make_config(dataset=dataset.options(), training={"max_epochs": 1}, **LAST)
    with pytest.raises(DatasetError) as caught:
        train(config)
    assert named in caught.value.message
    assert caught.value.code == "dataset_invalid"


@pytest.mark.parametrize("below", ["", "deeper"])
def test_unwritable_output_is_named_before_anything_is_loaded(
    make_config: Callable[..., RunConfig], tmp_path: Path, below: str
):
    (tmp_path / "taken").write_text("a file")
    config = make_config(output={"dir": str(tmp_path / "taken" / below)})
    with pytest.raises(ConfigError) as caught:
        train(config)
    assert [fault["pointer"] for fault in caught.value.errors] == ["/output/dir"]
