from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam3_lora.coco.report import DatasetIssueError
from sam3_lora.coco.schema import Annotation, Category, CocoDataset, ImageRecord, load
from tests.coco.datasets import HEIGHT, WIDTH, records


def load_from(folder: Path, content: object) -> CocoDataset:
    path = folder / "coco.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load(path)


def one(**changes: Any) -> dict[str, Any]:
    """A file with one image and one annotation with a box and a mask."""
    annotation = {
        "id": 5, "image_id": 7, "category_id": 3, "bbox": [4, 4, 16, 16], "iscrowd": 0,
        "segmentation": [[4, 4, 20, 4, 20, 20, 4, 20]],
    }  # fmt: skip
    return {
        "categories": [{"id": 3, "name": "bolt"}],
        "images": [{"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{key: value for key, value in {**annotation, **changes}.items() if value is not ...}],
    }


def test_reads_every_field(tmp_path: Path) -> None:
    dataset = load_from(tmp_path, one())
    annotation = Annotation(5, 7, 3, (4.0, 4.0, 16.0, 16.0), [[4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 20.0]], False)
    assert dataset == CocoDataset({3: Category(3, "bolt")}, {7: ImageRecord(7, "a.jpg", WIDTH, HEIGHT)}, [annotation])
    assert dataset.annotations_of(7) == [annotation]
    assert dataset.annotations_of(8) == []


def test_missing_iscrowd_is_zero(tmp_path: Path) -> None:
    assert load_from(tmp_path, one(iscrowd=...)).annotations[0].is_crowd is False
    assert load_from(tmp_path, one(iscrowd=1)).annotations[0].is_crowd is True


@pytest.mark.parametrize("missing", [..., None])
def test_missing_bbox_is_the_mask_extent(tmp_path: Path, missing: object) -> None:
    assert load_from(tmp_path, one(bbox=missing)).annotations[0].bbox == (4, 4, 16, 16)
    rle = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * 4 + 5, 10, HEIGHT * WIDTH - HEIGHT * 4 - 15]}
    assert load_from(tmp_path, one(bbox=missing, segmentation=rle)).annotations[0].bbox == (4, 5, 1, 10)


@pytest.mark.parametrize("missing", [..., None, [], {}])
def test_missing_segmentation_is_a_box_only(tmp_path: Path, missing: object) -> None:
    assert load_from(tmp_path, one(segmentation=missing)).annotations[0].segmentation is None


def test_empty_mask_falls_back_to_the_box(tmp_path: Path) -> None:
    assert load_from(tmp_path, one(segmentation=[[0.1, 0.1, 0.2, 0.2, 7.7, 7.7]])).annotations[0].segmentation is None


def test_image_id_stands_in_for_id(tmp_path: Path) -> None:
    content = one()
    content["images"][0]["image_id"] = content["images"][0].pop("id")
    assert list(load_from(tmp_path, content).images) == [7]


def test_id_wins_over_image_id(tmp_path: Path) -> None:
    content = one()
    content["images"][0]["image_id"] = 99
    assert list(load_from(tmp_path, content).images) == [7]


def test_text_ids(tmp_path: Path) -> None:
    content = one(id="a-1", image_id="img", category_id="c")
    content["images"][0]["id"], content["categories"][0]["id"] = "img", "c"
    assert load_from(tmp_path, content).annotations[0].id == "a-1"


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert load_from(tmp_path, "\ufeff" + json.dumps(one())).images


def test_unused_super_category_is_dropped(tmp_path: Path) -> None:
    assert [c.name for c in load_from(tmp_path, records()).categories.values()] == ["bolt", "nut"]


def test_super_category_may_share_the_name_of_its_only_child(tmp_path: Path) -> None:
    content = one()
    content["categories"] = [
        {"id": 0, "name": "bolt", "supercategory": "none"},
        {"id": 3, "name": "bolt", "supercategory": "bolt"},
    ]
    assert list(load_from(tmp_path, content).categories) == [3]


def test_used_or_unrelated_category_zero_stays(tmp_path: Path) -> None:
    content = one(category_id=0)
    content["categories"] = [{"id": 0, "name": "a"}, {"id": 3, "name": "b", "supercategory": "a"}]
    assert list(load_from(tmp_path, content).categories) == [0, 3]
    content = one()
    content["categories"] = [{"id": 0, "name": "a", "supercategory": "a"}, {"id": 3, "name": "b", "supercategory": "x"}]
    assert list(load_from(tmp_path, content).categories) == [0, 3]


def test_error_names_code_and_place(tmp_path: Path) -> None:
    with pytest.raises(DatasetIssueError) as caught:
        load_from(tmp_path, one(category_id=4))
    issue = caught.value.issue
    assert (issue.code, issue.pointer, issue.image) == ("category_unknown", "/annotations/0/category_id", "a.jpg")
    assert (issue.file, issue.annotation_id) == ("coco.json", 5)
    assert "coco.json/annotations/0/category_id" in str(caught.value)


def test_missing_file_is_a_dataset_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetIssueError):
        load(tmp_path / "nothing.json")
