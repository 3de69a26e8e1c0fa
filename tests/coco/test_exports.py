"""What annotation tools export is taken as it is, with everything that is in it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sam3_lora.coco.archive import extract
from sam3_lora.coco.dialects import file_in_dataset
from sam3_lora.coco.layout import find_layout
from sam3_lora.coco.report import DatasetReport
from sam3_lora.coco.schema import CocoDataset, load
from sam3_lora.coco.validate import validate
from sam3_lora.convert.yolo import convert_yolo
from sam3_lora.data.images import read_rgb
from sam3_lora.data.transforms import place_masks, whole
from tests.coco.exports import EXPORTS, zipped

# The 4 training images that were drawn have 9 objects, all 6 have 13.
# Of each export: images by split; of its annotations, those with outlines, run lengths and a box alone; warnings
EXPECTED = {
    "cvat": ({"train": 4, "validation": 2}, (4, 8, 1), {"crowd_as_object": 2, "too_few_images": 1}),
    "label-studio": ({"train": 4}, (3, 0, 6), {"too_few_images": 1}),
    "label-studio-brush": ({"train": 4}, (9, 0, 0), {"too_few_images": 1}),
    "roboflow": ({"train": 4, "validation": 1, "test": 1}, (13, 0, 0), {"too_few_images": 1}),
}


def splits(root: Path) -> dict[str, CocoDataset]:
    return {name: load(split.annotations) for name, split in find_layout(root).splits().items()}


def warnings(report: DatasetReport) -> dict[str, int]:
    return dict(Counter(issue.code.value for issue in report.issues))


@pytest.mark.parametrize("tool", EXPECTED)
def test_an_export_is_taken_as_it_is(tool: str, tmp_path: Path) -> None:
    extract(zipped(tool, tmp_path / "export.zip"), tmp_path / "x")
    images, kinds, warned = EXPECTED[tool]
    report = validate(tmp_path / "x")
    found = splits(tmp_path / "x")
    annotations = [annotation for dataset in found.values() for annotation in dataset.annotations]
    assert {name: len(dataset.images) for name, dataset in found.items()} == images
    assert {category.name for category in found["train"].categories.values()} == {"heart", "cross"}
    segmentations = [annotation.segmentation for annotation in annotations]
    assert tuple(sum(isinstance(each, kind) for each in segmentations) for kind in (list, dict, type(None))) == kinds
    assert not any(annotation.is_crowd for annotation in annotations)
    assert (report.errors, report.images, report.instances) == (0, sum(images.values()), sum(kinds))
    assert warnings(report) == warned


@pytest.mark.parametrize("tool", EXPECTED)
def test_its_masks_lie_on_what_is_drawn(tool: str, tmp_path: Path) -> None:
    """A mask's pixels are more alike than those around it: the outline is neither mirrored nor moved."""
    extract(zipped(tool, tmp_path / "export.zip"), tmp_path / "x")
    split = find_layout(tmp_path / "x").train
    dataset = load(split.annotations)
    closer = []
    for image in dataset.images.values():
        pixels = read_rgb(split.images / image.file_name).astype(np.float64)
        for annotation in dataset.annotations_of(image.id):
            if annotation.segmentation is None:
                continue
            masks = place_masks([annotation], (image.height, image.width), whole(80))
            inside = masks[0].numpy() > 0.5
            x, y, width, height = (round(value) for value in annotation.bbox)
            around = np.zeros_like(inside)
            around[max(0, y - 2) : y + height + 2, max(0, x - 2) : x + width + 2] = True
            around &= ~inside
            centre = np.median(pixels[inside], axis=0)
            distance = np.abs(pixels - centre).sum(-1)
            closer.append(np.median(distance[inside]) < np.median(distance[around]))
    assert len(closer) >= 3
    assert all(closer)


def test_yolo_is_taken_after_conversion(tmp_path: Path) -> None:
    summary = convert_yolo(EXPORTS / "ultralytics" / "data.yaml", tmp_path / "out")
    assert (summary.images, summary.images_without_annotations) == ({"train": 4, "valid": 1}, 1)
    report = validate(tmp_path / "out")
    assert (report.errors, report.images, report.instances) == (0, 5, summary.annotations)
    assert warnings(report) == {"too_few_images": 1}


def test_a_crowd_that_is_meant_stays_one_and_is_told(tmp_path: Path) -> None:
    root = tmp_path / "x"
    shutil.copytree(EXPORTS / "cvat", root)
    file = root / "annotations" / "instances_Train.json"
    body = json.loads(file.read_text())
    crowd = next(each for each in body["annotations"] if each["iscrowd"])
    crowd["attributes"] = {"colour": "red"}
    file.write_text(json.dumps(body))
    report = validate(root)
    assert warnings(report) == {"crowd_as_object": 2, "crowd_ignored": 1, "too_few_images": 1}
    (issue,) = [issue for issue in report.issues if issue.code == "crowd_ignored"]
    assert issue.message.startswith(f"1 of {len(body['annotations'])} annotations")
    for each in body["annotations"]:
        each.pop("attributes", None)
        each["iscrowd"] = 1
    file.write_text(json.dumps(body))
    report = validate(root)
    assert [issue.code for issue in report.issues if issue.severity == "error"] == ["too_few_images"]


PATHS = {
    "images/a.jpg": "images/a.jpg",
    "..a.jpg": "..a.jpg",
    "a/..b/c.jpg": "a/..b/c.jpg",
    "../../label-studio/data/media/upload/1/a.jpg": "a.jpg",
    "..\\..\\label-studio\\media\\upload\\4\\a.png": "a.png",
    "images\\a.png": "a.png",
    "/data/upload/1/a.jpg": "a.jpg",
    "C:/photos/a.jpg": "a.jpg",
    "https://example.com/photos/a.jpg": "a.jpg",
    "s3://bucket/a.jpg": "a.jpg",
    "https://example.com/photos/": "https://example.com/photos/",
}


@pytest.mark.parametrize("name", PATHS)
def test_of_a_path_elsewhere_the_last_part_counts(name: str) -> None:
    assert file_in_dataset(name) == PATHS[name]


@pytest.mark.parametrize("contributor", ["", None, 3, "A Label Studio"])
def test_paths_of_others_stay_as_they_are(contributor: object, tmp_path: Path) -> None:
    extract(zipped("label-studio", tmp_path / "export.zip"), tmp_path / "x")
    file = tmp_path / "x" / "result.json"
    body = json.loads(file.read_text())
    body["info"]["contributor"] = contributor
    file.write_text(json.dumps(body))
    assert load(file).images[0].file_name == "../media/upload/1/00000000-photo_0.jpg"
    assert {issue.code for issue in validate(tmp_path / "x").issues if issue.severity == "error"} >= {"image_missing"}


def test_two_paths_elsewhere_of_one_name_are_not_guessed_at(tmp_path: Path) -> None:
    extract(zipped("label-studio", tmp_path / "export.zip"), tmp_path / "x")
    file = tmp_path / "x" / "result.json"
    body = json.loads(file.read_text())
    body["images"][1]["file_name"] = body["images"][0]["file_name"].replace("/1/", "/2/")
    file.write_text(json.dumps(body))
    errors = [issue for issue in validate(tmp_path / "x").issues if issue.severity == "error"]
    assert [(issue.code, issue.pointer) for issue in errors] == [("image_missing", "/images/1/file_name")]
    assert "would be one file" in errors[0].message
